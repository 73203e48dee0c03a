"""An estimator as a plugin: GRPO's episode advantage, divided among an action's tokens by how surprising each was.

It uses three features that the built-in estimators do not: a column that the model computes first (``log_prob``), one
advantage per token, and an option of its own.

    gagpo train --algo.plugin examples/plugins/surprising_tokens.py --algo.advantage.estimator surprising_tokens ...
"""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.credit import CreditResult, EstimatorOptions, StepBatch, register
from openrlhf_gagpo.losses import ppo
from openrlhf_gagpo.options import declare


@dataclass(frozen=True)
class SurprisingTokensOptions(EstimatorOptions):
    """With ``sharpness`` 0 every token gets the same advantage."""

    sharpness: float = declare(0.5, "how much more a surprising token of an action counts", range=(0.0, 10.0))


@register(
    "surprising_tokens",
    SurprisingTokensOptions,
    {"actor.policy_loss_type": ppo.NAME, "algo.kl.init_coef": 0.01},
    needs={"log_prob"},
)
def surprising_tokens(batch: StepBatch, options: SurprisingTokensOptions) -> CreditResult:
    """Compute episode score minus the group's mean; a token's share grows with its negative log-probability."""
    score = batch.trajectories.expand(batch.trajectories.sum(batch.reward))
    advantage = score - batch.groups.expand(batch.groups.mean(score))
    surprise = -batch.required("log_prob")
    weight = 1 + options.sharpness * (surprise - batch.tokens.expand(batch.tokens.mean(surprise)))
    return CreditResult.of(
        batch,
        options,
        advantage=advantage,
        return_=score,
        token_advantage=weight * batch.tokens.expand(advantage),
    )
