"""One importance ratio per action, the geometric mean of its tokens' ratios.

GAGPO (arXiv 2605.13217, section 3.2) clips this ratio per environment step; GSPO (Zheng et al., arXiv 2507.18071) clips
it per response.
"""

from __future__ import annotations

from openrlhf_gagpo.losses.registry import Correction, LossBatch, LossResult, register
from openrlhf_gagpo.losses.surrogate import ClipOptions, clipped_surrogate

__all__ = ["NAME", "gspo"]

NAME = "gspo"


@register(NAME, ClipOptions, token_advantages=False, correction=Correction.OLD_LOG_PROBS)
def gspo(batch: LossBatch, options: ClipOptions) -> LossResult:
    """Compute the clipped surrogate per action, with the same weight for every action."""
    # Far outside the clip range the bound changes nothing but keeps exp and its gradient finite.
    ratio = batch.per_action(batch.log_probs - batch.old_log_probs).clamp(-20, 20).exp()
    objective, clipped = clipped_surrogate(ratio, batch.advantage, options, batch.clip_scale)
    real = batch.real()
    return LossResult(-(objective * real).sum() / batch.rows_per_step, ratio, clipped, real)
