"""Step-level experience: log-probabilities and values of all rows from the models, then planned micro-batches.

The rows already carry their final advantages, before any padding or balancing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from torch import Tensor

from openrlhf_gagpo.backends.distributed.actors import UpdateStep
from openrlhf_gagpo.backends.distributed.critic import CriticStep
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
    targets_by_token,
    trained_positions,
    value_positions,
    value_tensors,
)

__all__ = ["StepExperienceMaker"]


class StepExperienceMaker(RemoteExperienceMaker):
    """OpenRLHF's experience maker for rows that already carry their advantage."""

    def log_probs(self, rows: Sequence[TokenRow], batches: Sequence[MicroBatch], group: Any) -> list[Tensor]:
        """Compute the log-probabilities of every row's response tokens under a model group, in row order.

        Args:
            batches: a partition of the rows, as many micro-batches as the group has ranks or a multiple.
        """
        shared = self.args.train.colocate_all or self.args.train.colocate_actor_ref
        tokens = [self._collate(rows, batch) for batch in batches]
        return self._forward(tokens, [batch.responses for batch in tokens], batches, len(rows), group, shared)

    def values(self, rows: Sequence[TokenRow], batches: Sequence[MicroBatch]) -> list[Tensor]:
        """Compute the critic's values at the positions of every row (see ``training.values``), in row order."""
        tokens = [self._collate(rows, batch) for batch in batches]
        places = [
            value_positions([rows[row] for row in batch.rows], part)
            for batch, part in zip(batches, tokens, strict=True)
        ]
        return self._forward(tokens, places, batches, len(rows), self.critic_model_group, self.args.train.colocate_all)

    def _forward(
        self,
        tokens: Sequence[TokenBatch],
        places: Sequence[Places],
        batches: Sequence[MicroBatch],
        rows: int,
        group: Any,
        shared: bool,
    ) -> list[Tensor]:
        """Return the outputs of a model group at the ``places`` of each batch's rows, by row."""
        results: list[Tensor] = [torch.empty(0)] * rows
        if not rows:
            return results
        refs = self._dispatch_forward(
            group,
            # Models on the same GPU release their cached memory before the next one computes.
            sync_condition=shared,
            sequences=[batch.sequences for batch in tokens],
            action_mask=[where.cover(_shape(batch)) for where, batch in zip(places, tokens, strict=True)],
            attention_mask=[batch.attention_mask for batch in tokens],
        )
        outputs = self._flatten_results(refs, self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size)
        for batch, where, output in zip(batches, places, outputs, strict=True):
            # Padding rows come last and are left out.
            for row, value in zip(batch.rows, per_row(where.read(output), where.mask), strict=False):
                results[row] = value
        return results

    def hand_over(
        self,
        rows: Sequence[TrainingRow],
        plan: Sequence[OptimizerStep],
        old: Sequence[TokenValues],
        reference: Sequence[TokenValues] | None,
    ) -> None:
        """Give every policy rank its shard of the plan."""

        def micro_batch(batch: MicroBatch) -> tuple[TokenBatch, ActionTensors]:
            tokens = self._collate(rows, batch)
            actions = action_tensors(
                [rows[row] for row in batch.rows],
                [old[row] for row in batch.rows],
                None if reference is None else [reference[row] for row in batch.rows],
                tokens.responses.mask,
            )
            return tokens, actions

        self._plan(
            self.actor_model_group,
            plan,
            lambda shard, scale: UpdateStep([micro_batch(batch) for batch in shard], scale),
        )

    def hand_over_values(self, rows: Sequence[TrainingRow], plan: Sequence[OptimizerStep]) -> None:
        """Give every critic rank its shard of the plan."""
        by_token = targets_by_token(rows)

        def micro_batch(batch: MicroBatch) -> tuple[TokenBatch, ValueTensors]:
            tokens = self._collate(rows, batch)
            chosen = [rows[row] for row in batch.rows]
            places = trained_positions(chosen, tokens, by_token=by_token)
            return tokens, value_tensors(chosen, places, by_token=by_token)

        self._plan(
            self.critic_model_group,
            plan,
            lambda shard, scale: CriticStep([micro_batch(batch) for batch in shard], scale),
        )

    def _plan(
        self,
        group: Any,
        plan: Sequence[OptimizerStep],
        make: Callable[[Sequence[MicroBatch], LossScale], UpdateStep | CriticStep],
    ) -> None:
        copies = self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size
        refs = []
        for rank, actor in enumerate(group._actor_handlers):
            steps = [
                make(step.shards[rank // copies], LossScale(step.row_normalizer, step.token_normalizer))
                for step in plan
            ]
            refs.append(actor.plan.remote(steps))
        ray.get(refs)

    def _collate(self, rows: Sequence[TokenRow], batch: MicroBatch) -> TokenBatch:
        return collate([rows[row] for row in batch.rows], pad_id=self.tokenizer.pad_token_id, padding=batch.padding)


def _shape(tokens: TokenBatch) -> tuple[int, int]:
    """Return the shape of a model's output for a batch."""
    sequences, width = tokens.sequences.shape
    return sequences, width - 1
