"""The objective of an optimizer step: a registered policy loss, the KL to the reference, and the entropy bonus.

Pure torch functions that both backends use. Shapes: B rows, A action positions (right padded; ``mask`` is 1 on response
tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf_gagpo.losses import Correction, Loss, LossBatch, LossOptions
from openrlhf_gagpo.training.collate import ActionTensors
from openrlhf_gagpo.training.corrections import SamplerCorrection, sampler_weights

__all__ = [
    "LossScale",
    "Objective",
    "add_sums",
    "finish_metrics",
    "kl_estimate",
    "merge_sums",
    "read_sums",
    "step_loss",
]


@dataclass(frozen=True)
class Objective:
    """The loss and the coefficients that are optimised."""

    policy: Loss
    options: LossOptions
    """Of ``policy``."""
    response_limit: int
    """Response tokens that an action may have at most."""
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    entropy_coef: float | None = None
    """Weight of the entropy bonus; 0 only measures the entropy, None does not compute it."""
    correction: SamplerCorrection | None = None
    """None leaves differences between the sampler and the training pass alone."""


@dataclass(frozen=True)
class LossScale:
    """Totals of the whole optimizer step, over all micro-batches and ranks (see ``rows.OptimizerStep``)."""

    row_normalizer: float
    token_normalizer: int

    @property
    def tokens(self) -> int:
        """The divisor of sums over tokens: at least 1, so that the loss of a step without response tokens is 0."""
        return max(self.token_normalizer, 1)


def _k3(difference: Tensor) -> Tensor:
    # Below -10 the value exceeds the final clamp anyway; bounding it first keeps exp and its gradient finite.
    difference = difference.clamp(min=-10)
    return torch.expm1(-difference) + difference


_KL: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda difference: difference,
    "k2": lambda difference: difference.square() / 2,
    "k3": _k3,
}


def kl_estimate(log_probs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Estimate KL(policy || reference) per token, (B, A), clamped to [-10, 10] (Schulman's k1, k2, k3).

    Raises:
        ValueError: there is no such estimator.
    """
    if estimator not in _KL:
        raise ValueError(f"unknown KL estimator {estimator!r}; choose one of {', '.join(_KL)}")
    return _KL[estimator](log_probs.float() - reference.float()).clamp(min=-10, max=10)


def step_loss(
    log_probs: Tensor, entropy: Tensor | None, actions: ActionTensors, scale: LossScale, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of one micro-batch, normalised by the totals of its optimizer step.

    The losses of an optimizer step's micro-batches add up to the loss of the mini-batch for any division into
    micro-batches. A row without response tokens contributes nothing.

    Args:
        log_probs: (B, A) of the training model, with gradient.
        entropy: (B, A) in nats, or None.

    Returns:
        The scalar loss and sums (keys ending in ``_max`` combine by maximum) for ``finish_metrics``.
    """
    mask = actions.mask.to(log_probs.dtype)
    old, weight, corrected = _corrected(actions, mask, objective)
    result = objective.policy.compute(
        LossBatch(
            log_probs=log_probs,
            old_log_probs=old,
            advantage=actions.advantage,
            mask=mask,
            clip_scale=actions.clip_scale,
            rows_per_step=scale.row_normalizer,
            tokens_per_step=scale.tokens,
            response_limit=objective.response_limit,
            weight=weight,
        ),
        objective.options,
    )
    loss = result.loss
    sums = {
        "clip": (result.clipped * result.counted).sum(),
        "ratio": (result.ratio * result.counted).sum(),
        "ratio_count": result.counted.sum(),
        "approx_kl": ((actions.old_log_probs - log_probs.detach()) * mask).sum(),
        "tokens": mask.sum(),
        "rows": (mask.sum(-1) > 0).sum(),
        **corrected,
    }
    if actions.reference_log_probs is not None:
        kl = (kl_estimate(log_probs, actions.reference_log_probs, objective.kl_estimator) * mask).sum()
        loss = loss + objective.kl_coef * kl / scale.tokens
        sums["kl"] = kl
    if entropy is not None:
        total = (entropy * mask).sum()
        if objective.entropy_coef:
            loss = loss - objective.entropy_coef * total / scale.tokens
        sums["entropy"] = total
    sums |= {"loss": loss, "policy_loss": result.loss}
    if actions.sampling_log_probs is not None:
        gap = ((actions.old_log_probs - actions.sampling_log_probs) * mask).abs()
        sums |= {"sampling_gap": gap.sum(), "sampling_gap_max": gap.max()}
    return loss, {name: value.detach() for name, value in sums.items()}


def _corrected(actions: ActionTensors, mask: Tensor, objective: Objective) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the old log-probabilities and the token weights that the loss gets, and what to log about them."""
    plain, sampling = torch.ones_like(mask), actions.sampling_log_probs
    if objective.correction is None or sampling is None:
        return actions.old_log_probs, plain, {}
    if objective.policy.correction is Correction.OLD_LOG_PROBS:
        return sampling, plain, {}
    weight, outside = sampler_weights(actions.old_log_probs, sampling, mask, objective.correction)
    return actions.old_log_probs, weight, {"correction_weight": weight.sum(), "correction_outside": outside.sum()}


def add_sums(total: dict[str, Tensor], part: Mapping[str, Tensor]) -> None:
    """Add the sums of another micro-batch of a step (``*_max`` by maximum), on the device and in float64."""
    for key, value in part.items():
        number = value.double()
        if key in total:
            number = total[key].maximum(number) if key.endswith("_max") else total[key] + number
        total[key] = number


def read_sums(total: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the sums of a step as numbers, with one transfer from the device."""
    if not total:
        return {}
    return dict(zip(total, torch.stack(list(total.values())).tolist(), strict=True))


def merge_sums(total: dict[str, float], part: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Add the sums of another step or rank (``*_max`` by maximum)."""
    for key, value in part.items():
        number = float(value)
        if key not in total:
            total[key] = number
        else:
            total[key] = max(total[key], number) if key.endswith("_max") else total[key] + number
    return total


_TOKEN_MEANS = {
    "kl": "kl_ref",
    "entropy": "entropy",
    "sampling_gap": "sampling_logprob_diff_mean",
    "correction_outside": "correction_share",
    "correction_weight": "correction_weight_mean",
}
"""Sum over tokens -> metric of its mean, where the sum is there."""


def finish_metrics(total: dict[str, float], optimizer_steps: int) -> dict[str, float]:
    """Turn the sums of an iteration into documented metrics (see docs/metrics.md)."""
    if not optimizer_steps:
        return {"policy/optimizer_steps": 0.0, "policy/rows_trained": 0.0, "policy/tokens_trained": 0.0}
    tokens = max(total["tokens"], 1.0)
    metrics = {
        "policy/loss": total["loss"] / optimizer_steps,
        "policy/policy_loss": total["policy_loss"] / optimizer_steps,
        "policy/clip_share": total["clip"] / max(total["ratio_count"], 1.0),
        "policy/ratio_mean": total["ratio"] / max(total["ratio_count"], 1.0),
        "policy/approx_kl": total["approx_kl"] / tokens,
        "policy/optimizer_steps": float(optimizer_steps),
        "policy/rows_trained": total["rows"],
        "policy/tokens_trained": total["tokens"],
    }
    for key, name in _TOKEN_MEANS.items():
        if key in total:
            metrics[f"policy/{name}"] = total[key] / tokens
    if "sampling_gap_max" in total:
        metrics["policy/sampling_logprob_diff_max"] = total["sampling_gap_max"]
    return metrics
