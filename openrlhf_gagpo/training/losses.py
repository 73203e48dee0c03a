"""Policy loss, KL, entropy and log-probabilities as pure torch functions. Used by both backends.

Shapes: B rows, A action positions (right padded; ``mask`` is 1 on response tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LossOptions",
    "LossScale",
    "finish_metrics",
    "kl_estimate",
    "masked_entropy",
    "merge_sums",
    "policy_objective",
    "step_loss",
    "token_entropy",
    "token_log_probs",
]


@dataclass(frozen=True)
class LossOptions:
    """What is optimised. Names and meanings follow OpenRLHF's flags.

    ``ratio``: ``action`` (``--actor.policy_loss_type gspo``: one length-normalised ratio per action, GAGPO section
    3.2) or ``token`` (``ppo``). ``aggregate`` applies to the token ratio; the action ratio always averages rows.
    """

    ratio: str = "action"
    aggregate: str = "token-mean"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_coef: float = 0.01
    kl_estimator: str = "k3"
    entropy_coef: float = 0.0


@dataclass(frozen=True)
class LossScale:
    """Totals of the whole optimizer step, over all micro-batches and ranks (see ``rows.OptimizerStep``)."""

    row_normalizer: float
    token_normalizer: int


def token_log_probs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of ``targets`` (B, A) under ``logits`` (B, A, V), in float32."""
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, dim=-1)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of every position, (..., V) -> (...)."""
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def masked_entropy(logits: Tensor, mask: Tensor, temperature: float = 1.0, chunk: int = 1024) -> Tensor:
    """Entropy (B, A) of the positions where ``mask`` is 1, zero elsewhere; (B, A, V) logits.

    Only those positions are computed, ``chunk`` at a time: the vocabulary of a real model makes each one large.
    """
    chosen = mask.bool()
    parts = [token_entropy(part, temperature) for part in logits[chosen].split(chunk)]
    out = torch.zeros(mask.shape, dtype=torch.float32, device=logits.device)
    return out.masked_scatter(chosen, torch.cat(parts)) if parts else out


def kl_estimate(log_probs: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Per-token estimate of KL(policy || reference), (B, A), clamped to [-10, 10] (Schulman's k1, k2, k3)."""
    difference = log_probs.float() - reference.float()
    if estimator == "k1":
        value = difference
    elif estimator == "k2":
        value = difference.square() / 2
    elif estimator == "k3":
        # Below -10 the value is beyond the final clamp anyway; bounding first keeps exp and its gradient finite.
        difference = difference.clamp(min=-10)
        value = torch.expm1(-difference) + difference
    else:
        raise ValueError(f"unknown KL estimator {estimator!r}; choose k1, k2 or k3")
    return value.clamp(min=-10, max=10)


def policy_objective(log_ratio: Tensor, advantage: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate and where the clip binds.

    Args:
        log_ratio: log of the importance ratio, any shape that ``advantage`` broadcasts to.
    """
    ratio = log_ratio.exp()
    plain = ratio * advantage
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantage
    objective = torch.minimum(plain, clipped)
    if options.dual_clip is not None:
        objective = torch.where(advantage < 0, torch.maximum(objective, options.dual_clip * advantage), objective)
    return objective, clipped < plain


def step_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Tensor | None,
    sampling_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    entropy: Tensor | None,
    scale: LossScale,
    options: LossOptions,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one micro-batch, normalised by the totals of its optimizer step.

    The losses of an optimizer step's micro-batches add up to the loss of the mini-batch, however it was cut. A row
    without response tokens contributes nothing.

    Args:
        log_probs, old_log_probs: (B, A) training-model log-probs, now and before the iteration's first update.
        reference_log_probs: (B, A), or None without a KL term.
        sampling_log_probs: (B, A) the sampler's own numbers, for diagnostics only, or None.
        advantages: (B,) one per action.
        mask: (B, A) 1 on response tokens.
        entropy: (B, A) in nats, or None.

    Returns:
        The scalar loss and sums (keys ending in ``_max`` combine by maximum) for ``finish_metrics``.
    """
    mask = mask.to(log_probs.dtype)
    tokens_per_row = mask.sum(-1)
    real_row = (tokens_per_row > 0).to(log_probs.dtype)
    per_row = 1.0 / tokens_per_row.clamp(min=1)
    token_log_ratio = (log_probs - old_log_probs) * mask

    if options.ratio == "action":
        log_ratio = token_log_ratio.sum(-1) * per_row
        objective, bound = policy_objective(log_ratio, advantages, options)
        policy_loss = -(objective * real_row).sum() / scale.row_normalizer
        clip_sum, ratio_sum, ratio_count = (bound * real_row).sum(), (log_ratio.exp() * real_row).sum(), real_row.sum()
    else:
        log_ratio = token_log_ratio.clamp(-20, 20)
        objective, bound = policy_objective(log_ratio, advantages.unsqueeze(-1), options)
        if options.aggregate == "token-mean":
            policy_loss = -(objective * mask).sum() / scale.token_normalizer
        else:
            policy_loss = -((objective * mask).sum(-1) * per_row).sum() / scale.row_normalizer
        clip_sum, ratio_sum, ratio_count = (bound * mask).sum(), (log_ratio.exp() * mask).sum(), mask.sum()

    loss = policy_loss
    sums = {
        "loss": policy_loss.detach(),
        "clip": clip_sum.detach(),
        "ratio": ratio_sum.detach(),
        "ratio_count": ratio_count,
        "approx_kl": -token_log_ratio.detach().sum(),
        "tokens": mask.sum(),
        "rows": real_row.sum(),
    }
    if reference_log_probs is not None:
        kl = kl_estimate(log_probs, reference_log_probs, options.kl_estimator) * mask
        loss = loss + options.kl_coef * kl.sum() / scale.token_normalizer
        sums["kl"] = kl.detach().sum()
    if entropy is not None:
        entropy_sum = (entropy * mask).sum()
        if options.entropy_coef:
            loss = loss - options.entropy_coef * entropy_sum / scale.token_normalizer
        sums["entropy"] = entropy_sum.detach()
    if sampling_log_probs is not None:
        gap = ((old_log_probs - sampling_log_probs) * mask).abs().detach()
        sums["sampling_gap"] = gap.sum()
        sums["sampling_gap_max"] = gap.max()
    return loss, sums


def merge_sums(total: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Add the sums of one more micro-batch or rank (``*_max`` by maximum)."""
    for key, value in part.items():
        value = float(value)
        if key not in total:
            total[key] = value
        else:
            total[key] = max(total[key], value) if key.endswith("_max") else total[key] + value
    return total


def finish_metrics(total: dict[str, float], optimizer_steps: int) -> dict[str, float]:
    """Turn the sums of an iteration into documented metrics (see docs/metrics.md)."""
    if not optimizer_steps:
        return {"policy/optimizer_steps": 0.0, "policy/rows_trained": 0.0, "policy/tokens_trained": 0.0}
    tokens = max(total["tokens"], 1.0)
    metrics = {
        "policy/loss": total["loss"] / optimizer_steps,
        "policy/clip_share": total["clip"] / max(total["ratio_count"], 1.0),
        "policy/ratio_mean": total["ratio"] / max(total["ratio_count"], 1.0),
        "policy/approx_kl": total["approx_kl"] / tokens,
        "policy/optimizer_steps": float(optimizer_steps),
        "policy/rows_trained": total["rows"],
        "policy/tokens_trained": total["tokens"],
    }
    for key, name in (("kl", "kl_ref"), ("entropy", "entropy"), ("sampling_gap", "sampling_logprob_diff_mean")):
        if key in total:
            metrics[f"policy/{name}"] = total[key] / tokens
    if "sampling_gap_max" in total:
        metrics["policy/sampling_logprob_diff_max"] = total["sampling_gap_max"]
    return metrics
