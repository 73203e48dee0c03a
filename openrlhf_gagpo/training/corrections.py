"""Corrections for a sampler whose log-probabilities differ from those of the training pass: constant token weights.

With d = log-probability before the update minus the sampler's, exp(d) is the importance weight of a token (Yao et al.,
"Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025). Rules and names are OpenRLHF's; the
level ``seq-product`` is ours. Shapes: B rows, A action positions; everything is computed without gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SamplerCorrection", "sampler_weights"]


@dataclass(frozen=True)
class SamplerCorrection:
    """Which statistic of which unit is compared with which range, and what happens to units outside it."""

    level: str
    """The unit: ``token``; ``seq`` for a row by the mean over its tokens; ``seq-product`` for a row by its ratio."""
    mode: str
    """``mask`` drops a unit outside the range; ``clip`` moves its ratio to the nearer end."""
    gating: str
    """The statistic: ``ratio``, or a divergence of the token's own probability, ``binary_kl`` or ``tv``."""
    threshold: tuple[float, float]
    """Smallest and largest allowed value of the statistic."""


def _ratio(old: Tensor, sampling: Tensor) -> Tensor:
    # A ratio beyond e^20 carries no more information and would overflow.
    return (old - sampling).clamp(-20, 20).exp()


def _probabilities(old: Tensor, sampling: Tensor) -> tuple[Tensor, Tensor]:
    # At 0 and 1 the logarithms would be infinite.
    return sampling.exp().clamp(1e-6, 1 - 1e-6), old.exp().clamp(1e-6, 1 - 1e-6)


def _binary_kl(old: Tensor, sampling: Tensor) -> Tensor:
    p, q = _probabilities(old, sampling)
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def _total_variation(old: Tensor, sampling: Tensor) -> Tensor:
    p, q = _probabilities(old, sampling)
    return (p - q).abs()


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"binary_kl": _binary_kl, "tv": _total_variation}


def _row_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)


@torch.no_grad()
def sampler_weights(
    old: Tensor, sampling: Tensor, mask: Tensor, correction: SamplerCorrection
) -> tuple[Tensor, Tensor]:
    """Compute the weight of every token and whether the range changed it, both (B, A); padding has weight 0.

    Args:
        old: (B, A) log-probabilities of the training pass before the update.
        sampling: (B, A) log-probabilities of the sampler.
        mask: (B, A) float, 1 on response tokens.
    """
    ratio = _ratio(old, sampling)
    if correction.level == "seq-product":
        total = ((old - sampling) * mask).sum(-1, keepdim=True)
        ratio = total.clamp(-20, 20).exp().expand_as(mask)
    statistic = ratio
    if correction.gating in _DIVERGENCES:
        statistic = _DIVERGENCES[correction.gating](old, sampling)
        if correction.level == "seq":
            statistic = _row_mean(statistic, mask)
    elif correction.level == "seq":
        statistic = _row_mean(old - sampling, mask).exp()
    low, high = correction.threshold
    outside = ((statistic < low) | (statistic > high)).expand_as(mask)
    weight = ratio.clamp(low, high) if correction.mode == "clip" else ratio.masked_fill(outside, 0.0)
    return weight * mask, outside & mask.bool()
