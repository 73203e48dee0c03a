"""Conversion of rows to padded tensors, in the layout that OpenRLHF's ``Actor`` reads too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openrlhf_gagpo.training.rows import TokenRow, TrainingRow, longest_rows, sequence_numbers

__all__ = [
    "ActionTensors",
    "Places",
    "TokenBatch",
    "TokenValues",
    "action_tensors",
    "collate",
    "pad_right",
    "per_row",
    "scatter_rows",
]

TokenValues = Sequence[float] | NDArray | Tensor
"""One number per response token of a row."""


@dataclass
class Places:
    """Which entries of a model's (S, T-1) output belong to the A positions of each of B rows."""

    sequence: Tensor  # (B,) int64, each row's sequence
    position: Tensor  # (B, A) int64, zero outside ``mask``
    mask: Tensor  # (B, A) int64

    def read(self, values: Tensor) -> Tensor:
        """Return the (B, A) entries of ``values`` (S, T-1); those outside the mask mean nothing."""
        device = values.device
        return values[self.sequence.to(device)[:, None], self.position.to(device)]

    def cover(self, shape: tuple[int, int]) -> Tensor:
        """Return the mask (S, T-1) that is 1 at the positions of all rows."""
        out = torch.zeros(shape, dtype=torch.long)
        chosen = self.mask.bool()
        out[self.sequence[:, None].expand_as(chosen)[chosen], self.position[chosen]] = 1
        return out

    def select(self, rows: Tensor) -> Places:
        """Return the places of some rows, in any order and number."""
        return Places(self.sequence[rows], self.position[rows], self.mask[rows])

    def starting_at(self, starts: Sequence[int], counts: Sequence[int]) -> Places:
        """Return places in the same sequences: ``counts`` positions from ``starts`` on for the first rows, then none.

        A is at least 1.
        """
        padding = [0] * (len(self.sequence) - len(starts))
        first = torch.tensor([*starts, *padding], dtype=torch.long)[:, None]
        number = torch.tensor([*counts, *padding], dtype=torch.long)[:, None]
        places = torch.arange(max(1, *counts)) if counts else torch.arange(1)
        mask = (places < number).long()
        return Places(self.sequence, (first + places) * mask, mask)


@dataclass
class TokenBatch:
    """S sequences padded on the right to T tokens; position t of an output refers to token t + 1.

    A sequence holds one or several of the batch's B rows: segments of it, and rows that are equal.
    """

    sequences: Tensor  # (S, T) int64
    attention_mask: Tensor  # (S, T) int64
    action_mask: Tensor  # (S, T-1) int64, 1 where token t + 1 is in a response
    responses: Places  # of B rows, A of the longest response


@dataclass
class ActionTensors:
    """Inputs of the loss for B rows besides the model's output; A action positions, zero outside ``mask``."""

    mask: Tensor  # (B, A) int64
    old_log_probs: Tensor  # (B, A) float32, before the iteration's first update
    reference_log_probs: Tensor | None  # (B, A) float32; None without a KL term
    sampling_log_probs: Tensor | None  # (B, A) float32, the sampler's own; None if ``old_log_probs`` are these
    advantage: Tensor  # (B, 1) float32, or (B, A) where a row has one per token
    clip_scale: Tensor  # (B, 1) float32

    def to(self, device: torch.device) -> ActionTensors:
        """Return the same tensors on ``device``."""
        reference, sampling = self.reference_log_probs, self.sampling_log_probs
        return ActionTensors(
            mask=self.mask.to(device),
            old_log_probs=self.old_log_probs.to(device),
            reference_log_probs=None if reference is None else reference.to(device),
            sampling_log_probs=None if sampling is None else sampling.to(device),
            advantage=self.advantage.to(device),
            clip_scale=self.clip_scale.to(device),
        )


def collate(
    rows: Sequence[TokenRow], *, pad_id: int, padding: int = 0, sequence_of: Sequence[int] | None = None
) -> TokenBatch:
    """Pad the sequences of rows to one batch, followed by ``padding`` empty rows without any action token.

    Args:
        sequence_of: the sequence that each row is read from (see ``MicroBatch.sequence_of``); None for those of which
            the rows are segments.
    """
    sequence_of = sequence_numbers(rows) if sequence_of is None else sequence_of
    longest = longest_rows(rows, sequence_of)
    # The end of a prompt has a position even if the response is empty.
    width = max((max(row.length, len(row.prompt_ids) + 1) for row in longest), default=2)
    rest: list[list[int]] = [[]] * padding
    sequences, attention_mask = pad_right(
        [*(row.prompt_ids + row.response_ids for row in longest), *rest], pad_id=pad_id, width=width
    )
    # A row that attends to nothing makes softmax divide by zero, so padding rows attend to two pad tokens.
    attention_mask[len(longest) :, :2] = 1
    numbers = torch.tensor([*sequence_of, *range(len(longest), len(sequences))], dtype=torch.long)
    nowhere = torch.zeros(len(numbers), 1, dtype=torch.long)
    responses = Places(numbers, nowhere, nowhere).starting_at(
        [len(row.prompt_ids) - 1 for row in rows], [len(row.response_ids) for row in rows]
    )
    return TokenBatch(sequences, attention_mask, responses.cover((len(sequences), width - 1)), responses)


def pad_right(sequences: Sequence[Sequence[int]], *, pad_id: int, width: int) -> tuple[Tensor, Tensor]:
    """Return (B, width) int64 token ids, and the mask of the same shape that is 1 where they are not padding."""
    lengths = torch.tensor([len(ids) for ids in sequences], dtype=torch.long)
    mask = torch.arange(width) < lengths[:, None]
    out = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    out[mask] = torch.tensor(list(chain.from_iterable(sequences)), dtype=torch.long)
    return out, mask.long()


def action_tensors(
    rows: Sequence[TrainingRow],
    old: Sequence[TokenValues],
    reference: Sequence[TokenValues] | None,
    mask: Tensor,
    *,
    sampled: bool = False,
) -> ActionTensors:
    """Build the tensors of ``rows`` at the action positions of ``mask``, which may end in padding rows.

    Args:
        old, reference: log-probabilities of the same rows' response tokens.
        sampled: whether ``old`` are the sampler's own numbers.
    """

    def per_action(values: Sequence[float], padding: float) -> Tensor:
        column = torch.full((len(mask), 1), padding, dtype=torch.float32)
        column[: len(rows), 0] = torch.tensor(values, dtype=torch.float32)
        return column

    by_token = any(row.token_advantages is not None for row in rows)
    return ActionTensors(
        mask=mask,
        old_log_probs=scatter_rows(old, mask),
        reference_log_probs=None if reference is None else scatter_rows(reference, mask),
        sampling_log_probs=None if sampled else scatter_rows([row.sampling_log_probs for row in rows], mask),
        advantage=scatter_rows([_token_advantages(row) for row in rows], mask)
        if by_token
        else per_action([row.advantage for row in rows], 0.0),
        clip_scale=per_action([row.clip_scale for row in rows], 1.0),
    )


def _token_advantages(row: TrainingRow) -> TokenValues:
    return [row.advantage] * len(row.response_ids) if row.token_advantages is None else row.token_advantages


def scatter_rows(values: Sequence[TokenValues], action_mask: Tensor) -> Tensor:
    """Put per-row response values (row i: as many as its response tokens) back into (B, A) float32, zero elsewhere."""
    out = torch.zeros(action_mask.shape, dtype=torch.float32)
    if values:
        flat = np.concatenate([np.asarray(row, dtype=np.float32) for row in values])
        out[action_mask.bool()] = torch.from_numpy(flat)
    return out


def per_row(values: Tensor, action_mask: Tensor) -> list[Tensor]:
    """Return the unpadded response values of each row; the inverse of ``scatter_rows``."""
    mask = action_mask.cpu().bool()
    return list(values.cpu()[mask].split(mask.sum(-1).tolist()))
