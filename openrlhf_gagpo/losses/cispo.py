"""CISPO: the policy gradient of every token, weighted by its clipped importance ratio.

MiniMax, "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.losses.aggregation import aggregate, aggregation
from openrlhf_gagpo.losses.registry import Correction, LossBatch, LossOptions, LossResult, register
from openrlhf_gagpo.losses.surrogate import clip_bounds, clip_range, token_ratio

__all__ = ["NAME", "CispoOptions", "cispo"]

NAME = "cispo"


@dataclass(frozen=True)
class CispoOptions(LossOptions):
    """Options of the clipped-weight loss; its default bounds a weight from above only."""

    eps_clip_low_high: tuple[float, float] = clip_range(1.0, 5.0)
    loss_agg_mode: str = aggregation()


@register(NAME, CispoOptions, token_advantages=True, correction=Correction.WEIGHTS)
def cispo(batch: LossBatch, options: CispoOptions) -> LossResult:
    """Compute ``- clipped ratio * advantage * log p`` per token; the clipped ratio is a constant.

    Unlike the clipped surrogate, the gradient also reaches tokens whose ratio is outside the bounds.
    """
    ratio = token_ratio(batch).detach()
    bounded = ratio.clamp(*clip_bounds(options.eps_clip_low_high, batch.clip_scale))
    objective = bounded * batch.advantage * batch.log_probs
    return LossResult(-aggregate(batch, objective, options.loss_agg_mode), ratio, bounded != ratio, batch.mask)
