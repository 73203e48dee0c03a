"""PPO's clipped surrogate objective, for losses that clip an importance ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from openrlhf_gagpo.losses.registry import LossBatch, LossOptions
from openrlhf_gagpo.options import declare

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ClipOptions", "clip_bounds", "clip_range", "clipped_surrogate", "token_ratio"]


def clip_range(low: float, high: float) -> tuple[float, float]:
    """Declare the option of the clip range, which all losses that clip a ratio share."""
    return declare((low, high), "clip range below and above 1, separately", range=(0.0, float("inf")))


@dataclass(frozen=True)
class ClipOptions(LossOptions):
    """Options of losses that clip the importance ratio, under OpenRLHF's names."""

    eps_clip_low_high: tuple[float, float] = clip_range(0.2, 0.2)
    dual_clip: float | None = declare(
        None, "bound on the loss of negative advantages, above 1", range=(1.0, float("inf"))
    )


def token_ratio(batch: LossBatch) -> Tensor:
    """Return the importance ratio of every token, (B, A)."""
    # A ratio beyond e^20 carries no more information and would overflow.
    return ((batch.log_probs - batch.old_log_probs) * batch.mask).clamp(-20, 20).exp()


def clip_bounds(low_high: tuple[float, float], clip_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest ratio of every action, in the shape of ``clip_scale``."""
    low, high = low_high
    return 1 - low * clip_scale, 1 + high * clip_scale


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, options: ClipOptions, clip_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute PPO's pessimistic objective and where its clip binds (Schulman et al., arXiv 1707.06347, equation 7).

    Args:
        ratio: importance ratios, in any shape that the other two broadcast to.
        clip_scale: factor of both bounds.
    """
    plain = ratio * advantage
    clipped = ratio.clamp(*clip_bounds(options.eps_clip_low_high, clip_scale)) * advantage
    objective = plain.minimum(clipped)
    if options.dual_clip is not None:
        # A bad action costs at most this many times its advantage (Ye et al., arXiv 1912.09729).
        objective = objective.maximum(options.dual_clip * advantage).where(advantage < 0, objective)
    return objective, clipped < plain
