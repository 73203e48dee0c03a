"""The controller: which model group computes what of an iteration's rows, and when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from openrlhf_gagpo.backends.distributed.batches import Passes, Pending, critic_steps, policy_steps
from openrlhf_gagpo.backends.distributed.workers import WorkerGroup, wait_all
from openrlhf_gagpo.training.collate import TokenValues
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow
from openrlhf_gagpo.training.settings import BatchSettings

__all__ = ["StepTrainer"]


class StepTrainer:
    """Drives the model groups through an iteration.

    Args:
        args: OpenRLHF's arguments of the run.
        critic, reference: None if the run has none.
        pad_id: token that fills batches up.
    """

    def __init__(
        self,
        args: Any,
        policy: WorkerGroup,
        critic: WorkerGroup | None,
        reference: WorkerGroup | None,
        batches: BatchSettings,
        pad_id: int,
    ) -> None:
        self.actor_model_group = policy
        self.critic_model_group = critic
        self.reference_model_group = reference
        self._batches = batches
        self._pad_id = pad_id
        self._one_at_a_time = args.ds.enable_sleep
        # On the policy's GPUs a critic has processes of its own, which need the memory that the others have cached.
        self._release = args.train.colocate_all and critic is not None

    def values(self, rows: Sequence[TokenRow]) -> list[Tensor]:
        """Compute the critic's values at the positions of every row, in row order.

        Raises:
            ValueError: the run has no critic.
        """
        critic = self.critic_model_group
        if critic is None:
            raise ValueError("this run has no critic")
        return self._passes(rows, critic).values(critic, release=self._release).by_row()

    def log_probs(self, rows: Sequence[TokenRow]) -> list[Tensor]:
        """Compute the policy's log-probabilities of every row's response tokens, in row order."""
        actor = self.actor_model_group
        return self._passes(rows, actor).log_probs(actor, release=self._release).by_row()

    def _passes(self, rows: Sequence[TokenRow], group: WorkerGroup) -> Passes:
        return Passes(rows, self._batches.plan_forward(rows, group.ranks), self._pad_id)

    def update(self, rows: Sequence[TrainingRow], seed: int, *, policy: bool) -> dict[str, float]:
        """Run one iteration of optimizer steps on the rows; the critic's and the policy's run at the same time.

        Args:
            policy: whether the policy is trained too.
        """
        started = time.perf_counter()
        actor, critic = self.actor_model_group, self.critic_model_group
        trained = rows if policy else []
        old, reference = self._before(trained)
        forwarded = time.perf_counter()
        metrics: dict[str, float] = {}
        calls: list[tuple[WorkerGroup, Sequence[Any]]] = []
        if critic is not None:
            ranks = critic.ranks
            of_critic = critic_steps(
                rows, lambda read: self._batches.plan_training(read, ranks, seed), self._pad_id, ranks
            )
            calls.append((critic, critic.scatter("train", of_critic)))
            if self._one_at_a_time:
                metrics |= _metrics(calls)
                calls.clear()
        plan = self._batches.plan_training(trained, actor.ranks, seed)
        of_policy = policy_steps(trained, plan, old, reference, self._pad_id, actor.ranks)
        calls.append((actor, actor.scatter("train", of_policy)))
        metrics |= _metrics(calls)
        return {**metrics, "time/forward": forwarded - started, "time/update": time.perf_counter() - forwarded}

    def _before(self, rows: Sequence[TrainingRow]) -> tuple[Sequence[TokenValues], Sequence[TokenValues] | None]:
        """Return the log-probabilities of the policy before the first update, and of the reference if there is one."""
        passes: dict[int, Passes] = {}

        def begin(group: WorkerGroup) -> Pending:
            if group.ranks not in passes:
                passes[group.ranks] = self._passes(rows, group)
            return passes[group.ranks].log_probs(group, release=self._release)

        # Those that were computed for credit are not computed again.
        known = [row.old_log_probs for row in rows if row.old_log_probs is not None]
        old = begin(self.actor_model_group) if len(known) < len(rows) else None
        reference = None if self.reference_model_group is None else begin(self.reference_model_group)
        return known if old is None else old.by_row(), None if reference is None else reference.by_row()

    def send_weights(self) -> None:
        """Let the policy send its weights to the engines."""
        self.actor_model_group.run("broadcast_to_vllm")


def _metrics(calls: Sequence[tuple[WorkerGroup, Sequence[Any]]]) -> dict[str, float]:
    """Wait for updates and return their metrics, which all ranks of a group have alike."""
    metrics: dict[str, float] = {}
    for by_rank in wait_all(calls, "the update"):
        metrics |= by_rank[0]
    return metrics
