"""DeepSpeed workers of the critic: OpenRLHF's critic actor with planned updates.

Only the workers import this module (see ``workers``).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from openrlhf.trainer.ray import ppo_critic
from torch import Tensor

from openrlhf_gagpo.backends.distributed import compat
from openrlhf_gagpo.backends.distributed.actors import TrainedRank, step_log
from openrlhf_gagpo.backends.distributed.batches import CriticStep
from openrlhf_gagpo.backends.distributed.checkpoints import CRITIC
from openrlhf_gagpo.backends.distributed.strategy import StepStrategy
from openrlhf_gagpo.training.collate import TokenBatch
from openrlhf_gagpo.training.objective import LossScale, add_sums, read_sums
from openrlhf_gagpo.training.schedule import offset_warmup
from openrlhf_gagpo.training.values import ValueTensors, finish_value_metrics, value_loss

__all__ = ["CriticActorBase"]


class StepCriticTrainer(ppo_critic.CriticPPOTrainer):
    """Runs planned optimizer steps on the critic.

    OpenRLHF's own loop would drop rows that do not fill a batch and step the schedule with the optimizer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        offset_warmup(self.critic_scheduler, self.args.critic.lr_warmup_ratio)
        self.planned: list[CriticStep] = []
        self.log = step_log(self.args, "critic", "critic")

    def ppo_train(self) -> dict[str, float]:
        """Run one iteration's updates: every planned step once, then advance the learning-rate schedule by one.

        Raises:
            DivergenceError: too many steps in a row had a gradient that is not finite.
        """
        started = time.perf_counter()
        self.log.begin()
        learning_rate = self.critic_scheduler.get_last_lr()[0]
        for step in self.planned:
            sums: dict[str, Tensor] = {}
            for index, (tokens, values) in enumerate(step.micro_batches):
                boundary = index + 1 == len(step.micro_batches)
                add_sums(sums, self._backward(tokens, values, step.scale, boundary))
            norm = self.strategy.take_step(self.critic)
            self.log.end_step(read_sums(sums), norm)
        self.critic_scheduler.step()
        metrics = finish_value_metrics(self.strategy.reduce_sums(self.log.totals), self.log.count)
        metrics |= {f"critic/{name}": value for name, value in self.log.metrics().items()}
        self.planned = []
        return metrics | {"critic/lr": learning_rate, "time/critic": time.perf_counter() - started}

    def _backward(
        self, tokens: TokenBatch, targets: ValueTensors, scale: LossScale, boundary: bool
    ) -> dict[str, Tensor]:
        device = torch.device(torch.cuda.current_device())
        targets = targets.to(device)
        # OpenRLHF sets the values outside this mask to 0. The gradients of rows that read the same value add up.
        mask = targets.places.cover((len(tokens.sequences), tokens.sequences.shape[1] - 1))
        values = self.critic(
            tokens.sequences.to(device),
            action_mask=mask.to(device),
            attention_mask=tokens.attention_mask.to(device),
            ring_attn_group=self.strategy.ring_attn_group,
        )
        loss, sums = value_loss(targets.places.read(values.float()), targets, scale, self.value_clip)
        self.strategy.accumulate(loss, self.critic, self.critic_optim, boundary)
        return sums


_OpenrlhfCritic: Any = compat.plain_class(ppo_critic.CriticModelActor)


class CriticActorBase(TrainedRank, _OpenrlhfCritic):
    """OpenRLHF's critic actor with the step-level trainer."""

    def init_model_from_pretrained(self, strategy: StepStrategy, *args: Any) -> None:
        # OpenRLHF builds its trainer through this module global.
        ppo_critic.CriticPPOTrainer, original = StepCriticTrainer, ppo_critic.CriticPPOTrainer
        try:
            _OpenrlhfCritic.init_model_from_pretrained(self, strategy, *args)
        finally:
            ppo_critic.CriticPPOTrainer = original

    def forward(self, sequences: Tensor, action_mask: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the values (S, T-1) where ``action_mask`` is 1."""
        values: Tensor = _OpenrlhfCritic.forward(self, sequences, action_mask, attention_mask)
        return values

    def write_checkpoint(self, folder: str, loop: str) -> None:
        """Write this rank's part of the critic; the policy's part has the loop's state."""
        self.strategy.write_state(self.critic, folder, CRITIC, {})

    def read_checkpoint(self, folder: str) -> None:
        """Restore this rank's part of the critic."""
        with self.states_at_hand():
            self.strategy.read_state(self.critic, folder, CRITIC)

    def parameters(self) -> dict[str, Tensor]:
        """Return copies of all parameters by name (for tests and small models)."""
        return {name: value.float().cpu().clone() for name, value in self.strategy.whole_parameters(self.critic)}
