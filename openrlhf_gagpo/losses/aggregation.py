"""The sum of a token objective over an optimizer step, and what it is divided by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from openrlhf_gagpo.losses.registry import LossBatch
from openrlhf_gagpo.options import declare

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["aggregate", "aggregation"]


def _per_token(batch: LossBatch, objective: Tensor) -> Tensor:
    return (objective * batch.mask).sum() / batch.tokens_per_step


def _per_row(batch: LossBatch, objective: Tensor) -> Tensor:
    return batch.per_action(objective).sum() / batch.rows_per_step


def _per_row_of_constant_length(batch: LossBatch, objective: Tensor) -> Tensor:
    # Dr. GRPO: the tokens of a long action weigh as much as those of a short one (Liu et al., "Understanding
    # R1-Zero-Like Training: A Critical Perspective", 2025).
    return (objective * batch.mask).sum() / (batch.rows_per_step * batch.response_limit)


_MODES: dict[str, Callable[[LossBatch, Tensor], Tensor]] = {
    "token-mean": _per_token,
    "seq-mean-token-mean": _per_row,
    "seq-mean-token-sum-norm": _per_row_of_constant_length,
}


def aggregation() -> str:
    """Declare the option that chooses what a token objective is divided by."""
    return declare(
        "token-mean",
        "each token weighs the same, each action does, or each token does with every action counted as long as "
        "rollout.max_new_tokens",
        choices=tuple(_MODES),
    )


def aggregate(batch: LossBatch, objective: Tensor, mode: str) -> Tensor:
    """Add up a token objective (B, A) with the batch's token weights, divided by the totals that ``mode`` names."""
    return _MODES[mode](batch, objective * batch.weight)
