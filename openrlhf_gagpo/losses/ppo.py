"""PPO's loss with one importance ratio per token (Schulman et al., arXiv 1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.losses.aggregation import aggregate, aggregation
from openrlhf_gagpo.losses.registry import Correction, LossBatch, LossResult, register
from openrlhf_gagpo.losses.surrogate import ClipOptions, clipped_surrogate, token_ratio

__all__ = ["NAME", "PpoOptions", "ppo"]

NAME = "ppo"


@dataclass(frozen=True)
class PpoOptions(ClipOptions):
    """Options of the token-ratio loss."""

    loss_agg_mode: str = aggregation()


@register(NAME, PpoOptions, token_advantages=True, correction=Correction.WEIGHTS)
def ppo(batch: LossBatch, options: PpoOptions) -> LossResult:
    """Compute the clipped surrogate per token, averaged over all tokens or first over each action's tokens."""
    ratio = token_ratio(batch)
    objective, clipped = clipped_surrogate(ratio, batch.advantage, options, batch.clip_scale)
    return LossResult(-aggregate(batch, objective, options.loss_agg_mode), ratio, clipped, batch.mask)
