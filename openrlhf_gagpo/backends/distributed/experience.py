"""Step-level experience: log-probabilities of all rows from the policy and the reference, then planned micro-batches.

The rows already carry their final advantages, before any padding or balancing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from torch import Tensor

from openrlhf_gagpo.backends.distributed.actors import UpdateStep
from openrlhf_gagpo.training.collate import ActionTensors, TokenBatch, TokenValues, action_tensors, collate, per_row
from openrlhf_gagpo.training.objective import LossScale
from openrlhf_gagpo.training.rows import MicroBatch, OptimizerStep, TokenRow, TrainingRow

__all__ = ["StepExperienceMaker"]


class StepExperienceMaker(RemoteExperienceMaker):
    """OpenRLHF's experience maker for rows that already carry their advantage."""

    def log_probs(self, rows: Sequence[TokenRow], batches: Sequence[MicroBatch], group: Any) -> list[Tensor]:
        """Compute the log-probabilities of every row's response tokens under a model group, in row order.

        Args:
            batches: a partition of the rows, as many micro-batches as the group has ranks or a multiple.
        """
        if not rows:
            return []
        tokens = [self._collate(rows, batch) for batch in batches]
        refs = self._dispatch_forward(
            group,
            # Models on the same GPU release their cached memory before the next one computes.
            sync_condition=self.args.train.colocate_all or self.args.train.colocate_actor_ref,
            sequences=[batch.sequences for batch in tokens],
            action_mask=[batch.action_mask for batch in tokens],
            attention_mask=[batch.attention_mask for batch in tokens],
        )
        outputs = self._flatten_results(refs, self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size)
        results: list[Tensor] = [torch.empty(0)] * len(rows)
        for batch, token_batch, output in zip(batches, tokens, outputs, strict=True):
            values = per_row(output, token_batch.action_mask)
            for row, value in zip(batch.rows, values, strict=False):  # padding rows come last and are left out
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
        copies = self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size
        refs = []
        for rank, actor in enumerate(self.actor_model_group._actor_handlers):
            shard = rank // copies
            steps = [
                UpdateStep(
                    [self._micro_batch(rows, batch, old, reference) for batch in step.shards[shard]],
                    LossScale(step.row_normalizer, step.token_normalizer),
                )
                for step in plan
            ]
            refs.append(actor.plan.remote(steps))
        ray.get(refs)

    def _micro_batch(
        self,
        rows: Sequence[TrainingRow],
        batch: MicroBatch,
        old: Sequence[TokenValues],
        reference: Sequence[TokenValues] | None,
    ) -> tuple[TokenBatch, ActionTensors]:
        tokens = self._collate(rows, batch)
        actions = action_tensors(
            [rows[row] for row in batch.rows],
            [old[row] for row in batch.rows],
            None if reference is None else [reference[row] for row in batch.rows],
            tokens.action_mask,
        )
        return tokens, actions

    def _collate(self, rows: Sequence[TokenRow], batch: MicroBatch) -> TokenBatch:
        return collate([rows[row] for row in batch.rows], pad_id=self.tokenizer.pad_token_id, padding=batch.padding)
