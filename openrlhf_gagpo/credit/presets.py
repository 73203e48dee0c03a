"""Run-level settings that several estimators share."""

from __future__ import annotations

from collections.abc import Mapping

from openrlhf_gagpo.losses import ppo

__all__ = ["BASELINE_PRESETS"]

BASELINE_PRESETS: Mapping[str, object] = {
    "actor.policy_loss_type": ppo.NAME,
    "algo.kl.init_coef": 0.01,
    "algo.kl.use_loss": True,
    "algo.kl.estimator": "k3",
    "actor.lr_scheduler": "constant",
    "actor.lr_warmup_ratio": 0.0,
}
"""GiGPO's pipeline: token ratio, token-mean, k3 KL to the reference, constant learning rate."""
