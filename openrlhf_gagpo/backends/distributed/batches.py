"""What the driver sends to model workers: the passes over an iteration's rows, and planned micro-batches.

The rows already carry their final advantages, before any padding or balancing. A batch holds each distinct sequence of
its rows once (see ``training.rows.plan_updates``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from openrlhf_gagpo.backends.distributed.workers import WorkerGroup
from openrlhf_gagpo.training.collate import (
    ActionTensors,
    Places,
    TokenBatch,
    TokenValues,
    action_tensors,
    collate,
    per_row,
)
from openrlhf_gagpo.training.objective import LossScale
from openrlhf_gagpo.training.rows import MicroBatch, OptimizerStep, TokenRow, TrainingRow
from openrlhf_gagpo.training.values import (
    ValueTensors,
    rows_to_read,
    targets_by_token,
    trained_positions,
    value_positions,
    value_tensors,
)

__all__ = ["CriticStep", "PassInputs", "Passes", "Pending", "UpdateStep", "critic_steps", "policy_steps"]

PassInputs = tuple[Tensor, Tensor, Tensor]
"""Sequences (S, T), the mask of wanted outputs (S, T-1), and the attention mask (S, T), all int64."""


@dataclass
class UpdateStep:
    """The part of an optimizer step that one rank of the policy receives."""

    micro_batches: list[tuple[TokenBatch, ActionTensors]]
    scale: LossScale


@dataclass
class CriticStep:
    """The part of an optimizer step that one rank of the critic receives."""

    micro_batches: list[tuple[TokenBatch, ValueTensors]]
    scale: LossScale


class Passes:
    """Passes over all rows on a number of ranks, collated once for every model that reads them.

    Args:
        plan: of passes (see ``BatchSettings.plan_forward``); empty without rows.
    """

    def __init__(self, rows: Sequence[TokenRow], plan: Sequence[OptimizerStep], pad_id: int) -> None:
        self.rows = rows
        self.shards = [
            [(batch, _collate(rows, batch, pad_id)) for batch in shard] for step in plan for shard in step.shards
        ]

    def log_probs(self, group: WorkerGroup, *, release: bool) -> Pending:
        """Let a model group compute the log-probabilities of every row's response tokens.

        Args:
            release: whether the group then gives back its cached memory, to another process on the same GPU.
        """
        return self._start(group, release, lambda _, tokens: tokens.responses)

    def values(self, group: WorkerGroup, *, release: bool) -> Pending:
        """Let the critic compute the values at the positions of every row (see ``training.values``)."""
        return self._start(group, release, value_positions)

    def _start(
        self, group: WorkerGroup, release: bool, places_of: Callable[[Sequence[TokenRow], TokenBatch], Places]
    ) -> Pending:
        places: list[tuple[MicroBatch, Places]] = []
        shards: list[list[PassInputs]] = []
        for shard in self.shards:
            shards.append([])
            for batch, tokens in shard:
                where = places_of([self.rows[row] for row in batch.rows], tokens)
                places.append((batch, where))
                shape = len(tokens.sequences), tokens.sequences.shape[1] - 1
                shards[-1].append((tokens.sequences, where.cover(shape), tokens.attention_mask))
        refs = group.scatter("forward_passes", shards, release=release) if shards else []
        return Pending(group, refs, places, len(self.rows))


@dataclass(frozen=True)
class Pending:
    """Passes that a model group is making."""

    group: WorkerGroup
    refs: Sequence[Any]
    places: Sequence[tuple[MicroBatch, Places]]
    """Of each pass, rank after rank."""
    rows: int

    def by_row(self) -> list[Tensor]:
        """Wait for the passes and return the numbers of every row, in row order."""
        results: list[Tensor] = [torch.empty(0)] * self.rows
        by_rank = self.group.wait(self.refs, "the passes") if self.refs else []
        outputs = chain.from_iterable(by_rank)
        for (batch, where), output in zip(self.places, outputs, strict=True):
            # Padding rows come last and are left out.
            for row, value in zip(batch.rows, per_row(where.read(output), where.mask), strict=False):
                results[row] = value
        return results


def policy_steps(
    rows: Sequence[TrainingRow],
    plan: Sequence[OptimizerStep],
    old: Sequence[TokenValues],
    reference: Sequence[TokenValues] | None,
    pad_id: int,
    ranks: int,
) -> list[list[UpdateStep]]:
    """Return the part of the plan that each data-parallel rank of the policy gets.

    Args:
        old, reference: log-probabilities of every row's response tokens.
    """

    def micro_batch(batch: MicroBatch) -> tuple[TokenBatch, ActionTensors]:
        tokens = _collate(rows, batch, pad_id)
        actions = action_tensors(
            [rows[row] for row in batch.rows],
            [old[row] for row in batch.rows],
            None if reference is None else [reference[row] for row in batch.rows],
            tokens.responses.mask,
        )
        return tokens, actions

    return [
        [UpdateStep([micro_batch(batch) for batch in shard], scale) for shard, scale in _shards(plan, rank)]
        for rank in range(ranks)
    ]


def critic_steps(
    rows: Sequence[TrainingRow],
    plan_of: Callable[[Sequence[TokenRow]], Sequence[OptimizerStep]],
    pad_id: int,
    ranks: int,
) -> list[list[CriticStep]]:
    """Return the part of the plan that each data-parallel rank of the critic gets.

    Args:
        plan_of: plans optimizer steps over the rows as far as the critic reads them.
    """
    by_token = targets_by_token(rows)
    read = rows_to_read(rows, by_token=by_token)
    plan = plan_of(read)

    def micro_batch(batch: MicroBatch) -> tuple[TokenBatch, ValueTensors]:
        tokens = _collate(read, batch, pad_id)
        chosen = [rows[row] for row in batch.rows]
        places = trained_positions(chosen, tokens, by_token=by_token)
        return tokens, value_tensors(chosen, places, by_token=by_token)

    return [
        [CriticStep([micro_batch(batch) for batch in shard], scale) for shard, scale in _shards(plan, rank)]
        for rank in range(ranks)
    ]


def _shards(plan: Sequence[OptimizerStep], rank: int) -> Iterator[tuple[Sequence[MicroBatch], LossScale]]:
    for step in plan:
        yield step.shards[rank], LossScale(step.row_normalizer, step.token_normalizer)


def _collate(rows: Sequence[TokenRow], batch: MicroBatch, pad_id: int) -> TokenBatch:
    return collate(
        [rows[row] for row in batch.rows], pad_id=pad_id, padding=batch.padding, sequence_of=batch.sequence_of
    )
