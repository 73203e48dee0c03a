"""The workers' loops over planned steps, with models of two layers and neither processes nor DeepSpeed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from openrlhf_gagpo.losses import ppo
from openrlhf_gagpo.training.settings import BatchSettings
from openrlhf_gagpo.training.steps import StepLog
from support.objectives import objective
from support.transcripts import apart, segments

BATCHES = BatchSettings(6, 2, None, None, None)
ROWS = apart(segments(20, (5, 3, 4, 2)))
SCHEDULE = SimpleNamespace(get_last_lr=lambda: [0.1], step=lambda: None)


class Model(torch.nn.Module):
    """A policy or a critic, as OpenRLHF has them."""

    packing_samples, temperature = False, 1.0

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(20, 4), torch.nn.Linear(4, outputs)
        self.model = SimpleNamespace(get_output_embeddings=lambda: self.head)

    def forward(self, sequences: Tensor, **_: Any) -> Any:
        outputs = self.head(self.embedding(sequences))
        return outputs[:, :-1, 0] if self.head.out_features == 1 else SimpleNamespace(logits=outputs)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Makes tensors of the device have no numbers, so that whatever reads one fails, and notes what steps end with."""
    from openrlhf_gagpo.backends.distributed import actors, critic

    noted: list[set[str]] = []

    def read_sums(sums: dict[str, Tensor]) -> dict[str, float]:
        noted.append({value.device.type for value in sums.values()})
        return dict.fromkeys(sums, 0.0)

    modules: list[Any] = [actors, critic]
    for module in modules:
        monkeypatch.setattr(module, "read_sums", read_sums)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "meta")
    return noted


def bare(kind: Any, planned: list[Any], **given: Any) -> Any:
    """A trainer with what its loop needs alone, and with what is given."""
    trainer = kind.__new__(kind)
    trainer.args = SimpleNamespace(train=SimpleNamespace(logit_chunk=0))
    trainer.strategy = SimpleNamespace(
        args=trainer.args,
        ring_attn_group=None,
        accumulate=lambda loss, *_: loss.backward(),
        take_step=lambda model: 1.0,
        reduce_sums=lambda totals: totals,
    )
    trainer.planned, trainer.log = planned, StepLog("model", "flags", 0)
    assert min(len(step.micro_batches) for step in planned) > 1
    vars(trainer).update(given)
    return trainer


def test_nothing_of_a_policy_is_read_from_the_device_until_a_step_ends(read: list[set[str]]) -> None:
    from openrlhf_gagpo.backends.distributed.actors import StepPolicyTrainer
    from openrlhf_gagpo.backends.distributed.batches import policy_steps

    recorded = [row.sampling_log_probs for row in ROWS]
    steps = policy_steps(ROWS, BATCHES.plan_training(ROWS, 1, 0), recorded, recorded, 0, 1)[0]
    chosen = objective(ppo.NAME, kl_coef=0.05, entropy_coef=0.02)
    given = {"actor": Model(20).to("meta"), "actor_optim": None, "actor_scheduler": SCHEDULE, "objective": chosen}
    bare(StepPolicyTrainer, steps, **given).ppo_train(kl_ctl=0.0)
    assert read == [{"meta"}] * len(steps)


def test_nothing_of_a_critic_is_read_from_the_device_until_a_step_ends(read: list[set[str]]) -> None:
    from openrlhf_gagpo.backends.distributed.batches import critic_steps
    from openrlhf_gagpo.backends.distributed.critic import StepCriticTrainer

    steps = critic_steps(ROWS, lambda rows: BATCHES.plan_training(rows, 1, 0), 0, 1)[0]
    given = {"critic": Model(1).to("meta"), "critic_optim": None, "critic_scheduler": SCHEDULE, "value_clip": 0.5}
    bare(StepCriticTrainer, steps, **given).ppo_train()
    assert read == [{"meta"}] * len(steps)
