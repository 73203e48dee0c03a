"""PPO's clipped surrogate objective, for losses that clip an importance ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from openrlhf_gagpo.losses.registry import LossOptions
from openrlhf_gagpo.options import declare

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ClipOptions", "clipped_surrogate"]


@dataclass(frozen=True)
class ClipOptions(LossOptions):
    """Options of losses that clip the importance ratio, under OpenRLHF's names."""

    eps_clip_low_high: tuple[float, float] = declare(
        (0.2, 0.2), "clip range below and above 1, separately", range=(0.0, float("inf"))
    )
    dual_clip: float | None = declare(
        None, "bound on the loss of negative advantages, above 1", range=(1.0, float("inf"))
    )


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, options: ClipOptions, clip_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute PPO's pessimistic objective and where its clip binds (Schulman et al., arXiv 1707.06347, equation 7).

    Args:
        ratio: importance ratios, in any shape that the other two broadcast to.
        clip_scale: factor of both bounds.
    """
    low, high = options.eps_clip_low_high
    plain = ratio * advantage
    clipped = ratio.clamp(1 - low * clip_scale, 1 + high * clip_scale) * advantage
    objective = plain.minimum(clipped)
    if options.dual_clip is not None:
        # A bad action costs at most this many times its advantage (Ye et al., arXiv 1912.09729).
        objective = objective.maximum(options.dual_clip * advantage).where(advantage < 0, objective)
    return objective, clipped < plain
