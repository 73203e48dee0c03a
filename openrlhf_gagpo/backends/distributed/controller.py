"""OpenRLHF's single controller, with rows and updates of ours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from openrlhf.trainer.ppo_trainer import BasePPOTrainer
from torch import Tensor

from openrlhf_gagpo.backends.distributed.actors import StepStrategy
from openrlhf_gagpo.backends.distributed.experience import StepExperienceMaker
from openrlhf_gagpo.training.collate import TokenValues
from openrlhf_gagpo.training.rows import MicroBatch, TokenRow, TrainingRow
from openrlhf_gagpo.training.settings import BatchSettings

__all__ = ["StepTrainer"]


class StepTrainer(BasePPOTrainer):
    """OpenRLHF's single controller with step-level experience, which owns the actor groups."""

    def __init__(
        self,
        strategy: StepStrategy,
        policy: Any,
        critic: Any,
        reference: Any,
        engines: list[Any],
        tokenizer: Any,
        batches: BatchSettings,
    ) -> None:
        super().__init__(strategy, policy, critic, None, reference, engines, tokenizer)
        self.experience_maker = StepExperienceMaker(policy, critic, None, reference, self.kl_ctl, strategy, tokenizer)
        self.batches = batches

    def _ranks(self, section: Any) -> int:
        """Return the data-parallel ranks of the policy, the critic or the reference."""
        ds = self.args.ds
        ranks: int = section.num_nodes * section.num_gpus_per_node // (ds.ring_attn_size * ds.tensor_parallel_size)
        return ranks

    def values(self, rows: Sequence[TokenRow]) -> list[Tensor]:
        """Compute the critic's values at the positions of every row, in row order."""
        return self.experience_maker.values(rows, self._passes(rows, self.args.critic))

    def log_probs(self, rows: Sequence[TokenRow], group: Any) -> list[Tensor]:
        """Compute the log-probabilities of every row's response tokens under a model group, in row order."""
        # The reference may have GPUs of its own, of another number.
        section = self.args.ref if group is self.reference_model_group else self.args.actor
        return self.experience_maker.log_probs(rows, self._passes(rows, section), group)

    def _passes(self, rows: Sequence[TokenRow], section: Any) -> list[MicroBatch]:
        """Cut the rows into passes, rank after rank, as OpenRLHF deals a list of batches out in contiguous chunks."""
        plan = self.batches.plan_forward(rows, self._ranks(section))
        return [batch for step in plan for shard in step.shards for batch in shard]

    def update(self, rows: Sequence[TrainingRow], seed: int, *, policy: bool) -> dict[str, float]:
        """Run one iteration of optimizer steps on the rows; the critic's and the policy's run at the same time."""
        started = time.perf_counter()
        if self.critic_model_group is not None:
            plan = self.batches.plan_training(rows, self._ranks(self.args.critic), seed)
            self.experience_maker.hand_over_values(rows, plan)
        rows = rows if policy else []
        old = self._old_log_probs(rows)
        group = self.reference_model_group
        reference = None if group is None else self.log_probs(rows, group)
        forwarded = time.perf_counter()
        plan = self.batches.plan_training(rows, self._ranks(self.args.actor), seed)
        self.experience_maker.hand_over(rows, plan, old, reference)
        # OpenRLHF would leave the policy alone in early steps; here its plan is empty then.
        metrics = self.ppo_train(global_steps=self.args.critic.freezing_steps + 1)
        return {
            **metrics,
            "time/forward": forwarded - started,
            "time/update": time.perf_counter() - forwarded,
        }

    def _old_log_probs(self, rows: Sequence[TrainingRow]) -> Sequence[TokenValues]:
        """Return log-probabilities before the first update; reuse those that were computed for credit, if any."""
        known = [row.old_log_probs for row in rows if row.old_log_probs is not None]
        return known if len(known) == len(rows) else self.log_probs(rows, self.actor_model_group)
