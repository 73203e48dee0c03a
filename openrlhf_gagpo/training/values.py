"""The critic's side of training: which positions have a value, the clipped value loss, and its metrics.

Pure torch functions that both backends use. Shapes: B rows, A positions of each. Position t of a model's output holds
the value before token t + 1, so the position of a prompt's last token holds the value at the end of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openrlhf_gagpo.training.collate import Places, TokenBatch, TokenValues, scatter_rows
from openrlhf_gagpo.training.objective import LossScale
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow
from openrlhf_gagpo.training.table import TOKEN_VALUE, VALUE

__all__ = [
    "ValueTensors",
    "finish_value_metrics",
    "rows_to_read",
    "targets_by_token",
    "trained_positions",
    "value_columns",
    "value_loss",
    "value_positions",
    "value_tensors",
]


@dataclass
class ValueTensors:
    """Inputs of the value loss for B rows besides the model's output, zero outside ``mask``."""

    places: Places  # (B, A), where the critic is trained
    old: Tensor  # (B, A) float32, values before the iteration's first update
    target: Tensor  # (B, A) float32
    by_token: bool
    """Whether every response token has a target, or each row one at the end of its prompt."""

    def to(self, device: torch.device) -> ValueTensors:
        """Return the same tensors on ``device``."""
        return ValueTensors(self.places, self.old.to(device), self.target.to(device), self.by_token)


def value_positions(rows: Sequence[TokenRow], tokens: TokenBatch) -> Places:
    """Return the positions that have a value: each prompt's end, and before each later token of the response."""
    counts = [max(len(row.response_ids), 1) for row in rows]
    return tokens.responses.starting_at([len(row.prompt_ids) - 1 for row in rows], counts)


def trained_positions(rows: Sequence[TokenRow], tokens: TokenBatch, *, by_token: bool) -> Places:
    """Return the positions at which a critic is trained: before each response token, or each prompt's end."""
    if by_token:
        return tokens.responses
    return tokens.responses.starting_at([len(row.prompt_ids) - 1 for row in rows], [1] * len(rows))


def rows_to_read(rows: Sequence[TokenRow], *, by_token: bool) -> Sequence[TokenRow]:
    """Return rows as far as a critic has to read them to be trained: if only at the ends of prompts, then to there."""
    if by_token:
        return rows
    return [TokenRow(row.prompt_ids, [], [], sequence=row.sequence) for row in rows]


def value_columns(values: Sequence[TokenValues], rows: Sequence[TokenRow]) -> dict[str, NDArray[np.float64]]:
    """Return the columns of ``credit.StepBatch`` from the values at each row's positions.

    ``value`` is the value at the end of each prompt, ``token_value`` that before each response token, row after row.
    """
    flat = [np.asarray(row, dtype=np.float64) for row in values]
    by_token = [row[: len(tokens.response_ids)] for row, tokens in zip(flat, rows, strict=True)]
    return {VALUE: np.array([row[0] for row in flat]), TOKEN_VALUE: np.concatenate(by_token)}


def value_tensors(rows: Sequence[TrainingRow], places: Places, *, by_token: bool) -> ValueTensors:
    """Build the tensors of rows that carry values and targets.

    Args:
        places: the rows' ``trained_positions``, which may end in padding rows.

    Raises:
        ValueError: a row has no target for the critic.
    """
    values = [_values(row, by_token) for row in rows]
    return ValueTensors(
        places=places,
        old=scatter_rows([old for old, _ in values], places.mask),
        target=scatter_rows([target for _, target in values], places.mask),
        by_token=by_token,
    )


def targets_by_token(rows: Sequence[TrainingRow]) -> bool:
    """Return whether the critic's targets belong to response tokens, or else to the ends of prompts."""
    return any(row.token_value_targets is not None for row in rows)


def _values(row: TrainingRow, by_token: bool) -> tuple[TokenValues, TokenValues]:
    """Return a row's values before the update, and its targets."""
    if by_token and row.token_values is not None and row.token_value_targets is not None:
        return row.token_values, row.token_value_targets
    if not by_token and row.value is not None and row.value_target is not None:
        return [row.value], [row.value_target]
    raise ValueError(f"step {row.step} of trajectory {row.trajectory!r} has no value or no target for the critic")


def value_loss(
    values: Tensor, tensors: ValueTensors, scale: LossScale, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute half the squared error, pessimistic about values that moved by more than ``clip`` (OpenRLHF's loss).

    The losses of an optimizer step's micro-batches add up to the mean over its targets for any division into
    micro-batches.

    Args:
        values: (B, A) of the critic at ``tensors.places``, with gradient.

    Returns:
        The scalar loss and sums for ``finish_value_metrics``.
    """
    mask = tensors.places.mask.to(values)
    moved = tensors.old + (values - tensors.old).clamp(-clip, clip)
    plain, clipped = (values - tensors.target).square(), (moved - tensors.target).square()
    count = scale.tokens if tensors.by_token else scale.row_normalizer
    loss = 0.5 * (plain.maximum(clipped) * mask).sum() / count
    sums = {
        "loss": loss,
        "value": (values * mask).sum(),
        "target": (tensors.target * mask).sum(),
        "clip": ((clipped > plain) * mask).sum(),
        "count": mask.sum(),
    }
    return loss, {name: value.detach() for name, value in sums.items()}


def finish_value_metrics(total: dict[str, float], optimizer_steps: int) -> dict[str, float]:
    """Turn the sums of an iteration into documented metrics (see docs/metrics.md)."""
    if not optimizer_steps:
        return {}
    count = max(total["count"], 1.0)
    return {
        "critic/loss": total["loss"] / optimizer_steps,
        "critic/value_mean": total["value"] / count,
        "critic/target_mean": total["target"] / count,
        "critic/clip_share": total["clip"] / count,
    }
