"""PPO's loss with one importance ratio per token (Schulman et al., arXiv 1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.losses.registry import LossBatch, LossResult, register
from openrlhf_gagpo.losses.surrogate import ClipOptions, clipped_surrogate
from openrlhf_gagpo.options import declare

__all__ = ["NAME", "PpoOptions", "ppo"]

NAME = "ppo"


@dataclass(frozen=True)
class PpoOptions(ClipOptions):
    """Options of the token-ratio loss."""

    loss_agg_mode: str = declare(
        "token-mean",
        "each token or each action weighs the same",
        choices=("token-mean", "seq-mean-token-mean"),
    )


@register(NAME, PpoOptions, token_advantages=True)
def ppo(batch: LossBatch, options: PpoOptions) -> LossResult:
    """Compute the clipped surrogate per token, averaged over all tokens or first over each action's tokens."""
    # A ratio beyond e^20 carries no more information and would overflow.
    ratio = ((batch.log_probs - batch.old_log_probs) * batch.mask).clamp(-20, 20).exp()
    objective, clipped = clipped_surrogate(ratio, batch.advantage, options, batch.clip_scale)
    if options.loss_agg_mode == "token-mean":
        loss = -(objective * batch.mask).sum() / batch.tokens_per_step
    else:
        loss = -batch.per_action(objective).sum() / batch.rows_per_step
    return LossResult(loss, ratio, clipped, batch.mask)
