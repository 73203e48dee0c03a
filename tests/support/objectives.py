"""Objectives and loss inputs in a line."""

from __future__ import annotations

import torch
from torch import Tensor

from openrlhf_gagpo import losses
from openrlhf_gagpo.training.collate import ActionTensors
from openrlhf_gagpo.training.corrections import SamplerCorrection
from openrlhf_gagpo.training.objective import Objective

__all__ = ["actions", "objective"]


def objective(
    loss: str,
    *,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    entropy_coef: float = 0.0,
    response_limit: int = 8,
    correction: SamplerCorrection | None = None,
    **options: object,
) -> Objective:
    """The policy loss ``loss`` with ``options``, and the other terms."""
    entry = losses.get(loss)
    return Objective(
        entry, entry.options_cls(**options), response_limit, kl_coef, kl_estimator, entropy_coef, correction
    )


def actions(
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    reference: Tensor | None = None,
    sampling: Tensor | None = None,
    clip_scale: Tensor | None = None,
) -> ActionTensors:
    """Loss inputs; ``advantages`` and ``clip_scale`` are (B,), the former may be (B, A)."""
    return ActionTensors(
        mask=mask,
        old_log_probs=old,
        reference_log_probs=reference,
        sampling_log_probs=old if sampling is None else sampling,
        advantage=advantages if advantages.dim() == 2 else advantages.unsqueeze(-1),
        clip_scale=torch.ones(len(mask), 1) if clip_scale is None else clip_scale.unsqueeze(-1),
    )
