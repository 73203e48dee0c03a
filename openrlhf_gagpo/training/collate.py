"""Rows to padded tensors, in the layout that OpenRLHF's ``Actor`` reads too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf_gagpo.training.rows import TrainingRow

__all__ = ["TokenBatch", "collate", "per_row", "scatter_rows"]


@dataclass
class TokenBatch:
    """B rows padded on the right to T tokens; position t of an action array speaks of token t + 1."""

    sequences: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64
    action_mask: Tensor  # (B, T-1) int64, 1 where token t + 1 was sampled


def collate(rows: Sequence[TrainingRow], *, pad_id: int, padding: int = 0) -> TokenBatch:
    """Pad rows to one batch; ``padding`` empty rows follow, with no action token at all."""
    width = max((row.length for row in rows), default=2)
    count = len(rows) + padding
    sequences = torch.full((count, width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((count, width), dtype=torch.long)
    action_mask = torch.zeros((count, width - 1), dtype=torch.long)
    for index, row in enumerate(rows):
        sequences[index, : row.length] = torch.tensor(row.prompt_ids + row.response_ids)
        attention_mask[index, : row.length] = 1
        action_mask[index, len(row.prompt_ids) - 1 : row.length - 1] = 1
    # A row that attends to nothing makes softmax divide by zero: let padding rows look at two pad tokens.
    attention_mask[len(rows) :, :2] = 1
    return TokenBatch(sequences, attention_mask, action_mask)


def scatter_rows(values: Sequence[Sequence[float] | Tensor], action_mask: Tensor) -> Tensor:
    """Put per-row response values (row i: as many as its response tokens) back into (B, A) float32, zero elsewhere."""
    out = torch.zeros(action_mask.shape, dtype=torch.float32)
    for index, row in enumerate(values):
        out[index][action_mask[index].bool()] = torch.as_tensor(row, dtype=torch.float32)
    return out


def per_row(values: Tensor, action_mask: Tensor) -> list[Tensor]:
    """The inverse of ``scatter_rows``: the response values of each row, unpadded."""
    return [row[mask.bool()] for row, mask in zip(values.cpu(), action_mask.cpu(), strict=True)]
