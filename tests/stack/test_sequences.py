"""Transcripts in the distributed workers: OpenRLHF's own models and our update code, without processes around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from openrlhf_gagpo.losses import ppo
from openrlhf_gagpo.training.objective import merge_sums
from openrlhf_gagpo.training.rows import TrainingRow
from openrlhf_gagpo.training.settings import BatchSettings
from support.models import make_critic, make_model
from support.objectives import objective
from support.transcripts import apart, segments

BATCHES = BatchSettings(100, 2, None, 3, None)


class Numbers(NamedTuple):
    """What the workers make of some rows."""

    log_probs: list[Tensor]
    values: list[Tensor]
    sums: dict[str, float]
    gradients: dict[str, Tensor]
    tokens: int
    """Tokens that the policy read in training."""


class Kept:
    """A group of one worker that keeps its plan."""

    def __init__(self) -> None:
        self._actor_handlers = [SimpleNamespace(plan=SimpleNamespace(remote=self._keep))]

    def _keep(self, steps: Any) -> None:
        self.steps = steps


def experience_maker(group: Kept, forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
    from openrlhf_gagpo.backends.distributed.experience import StepExperienceMaker

    def dispatch(group: Any, *, sync_condition: bool, sequences: Any, action_mask: Any, attention_mask: Any) -> Any:
        with torch.no_grad():
            return [forward(*inputs) for inputs in zip(sequences, action_mask, attention_mask, strict=True)]

    maker = object.__new__(StepExperienceMaker)
    maker.args = SimpleNamespace(
        ds=SimpleNamespace(ring_attn_size=1, tensor_parallel_size=1),
        train=SimpleNamespace(colocate_all=True, colocate_actor_ref=False),
    )
    maker.tokenizer = SimpleNamespace(pad_token_id=0)
    maker.actor_model_group = maker.critic_model_group = group
    maker._dispatch_forward = dispatch
    maker._flatten_results = lambda outputs, copies: outputs
    return maker


def numbers(rows: Sequence[TrainingRow], actor: Any, critic: Any) -> Numbers:
    from openrlhf_gagpo.backends.distributed.actors import StepPolicyTrainer
    from openrlhf_gagpo.backends.distributed.critic import StepCriticTrainer
    from openrlhf_gagpo.backends.distributed.response_pass import response_pass

    passes = [batch for step in BATCHES.plan_forward(rows) for batch in step.shards[0]]
    plan = BATCHES.plan_training(rows, 1, seed=0)
    strategy: Any = SimpleNamespace(
        ring_attn_group=None,
        accumulate=lambda loss, *_: loss.backward(),
        args=SimpleNamespace(train=SimpleNamespace(logit_chunk=0)),
    )
    totals: dict[str, float] = {}
    tokens = 0

    group = Kept()
    actor.eval()
    maker = experience_maker(group, lambda ids, actions, mask: response_pass(actor, ids, mask, actions, strategy)[0])
    log_probs = maker.log_probs(rows, passes, None)
    maker.hand_over(rows, plan, [row + 0.1 for row in log_probs], [row - 0.3 for row in log_probs])
    trainer = SimpleNamespace(
        actor=actor, strategy=strategy, actor_optim=None,
        objective=objective(ppo.NAME, kl_coef=0.05, entropy_coef=0.02),
    )  # fmt: skip
    actor.zero_grad()
    for step in group.steps:
        for batch, actions in step.micro_batches:
            tokens += int(batch.attention_mask.sum())
            merge_sums(totals, StepPolicyTrainer._backward(trainer, batch, actions, step.scale, True))
    gradients = {name: p.grad.clone() for name, p in actor.named_parameters()}

    critic.eval()
    maker = experience_maker(group, lambda ids, actions, mask: critic(ids, action_mask=actions, attention_mask=mask))
    values = maker.values(rows, passes)
    maker.hand_over_values(rows, plan)
    trainer = SimpleNamespace(critic=critic, strategy=strategy, critic_optim=None, value_clip=0.5)
    critic.zero_grad()
    for step in group.steps:
        for batch, targets in step.micro_batches:
            part = StepCriticTrainer._backward(trainer, batch, targets, step.scale, True)
            # Rounding decides whether a value that moved by less than the clip counts as clipped.
            merge_sums(totals, {f"critic_{name}": value for name, value in part.items() if name != "clip"})
    gradients |= {f"critic {name}": p.grad.clone() for name, p in critic.named_parameters() if p.grad is not None}
    return Numbers(log_probs, values, totals, gradients, tokens)


def _flat(values: Sequence[Tensor]) -> np.ndarray:
    return torch.cat(list(values)).numpy()


def test_a_transcript_gives_the_numbers_of_one_row_per_action(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities, values, loss, KL, entropy and gradients, packed and padded."""
    from openrlhf_gagpo.backends.distributed import compat, experience

    compat.install()
    from openrlhf.models import Actor, get_llm_for_sequence_regression

    monkeypatch.setattr(experience, "ray", SimpleNamespace(get=lambda refs: refs))
    model = make_model(tmp_path / "model", tied=False)
    head = make_critic(model, tmp_path / "critic")
    rows = segments(20, (5, 3, 4, 1, 6, 2))
    for packing in (False, True):
        options: dict[str, Any] = {"attn_implementation": "sdpa", "param_dtype": "fp32", "packing_samples": packing}
        actor = Actor(str(model), **options)
        critic = get_llm_for_sequence_regression(
            str(head), "critic", normalize_reward=False, init_value_head=False, value_head_prefix="score", **options
        )
        whole, single = (numbers(given, actor, critic) for given in (rows, apart(rows)))
        np.testing.assert_allclose(_flat(whole.log_probs), _flat(single.log_probs), atol=1e-5)
        np.testing.assert_allclose(_flat(whole.values), _flat(single.values), atol=1e-5)
        assert whole.sums == pytest.approx(single.sums, rel=1e-4, abs=1e-5)
        assert whole.gradients.keys() == single.gradients.keys()
        for name, value in whole.gradients.items():
            torch.testing.assert_close(value, single.gradients[name], atol=1e-5, rtol=1e-5, msg=name)
        assert whole.tokens < 0.5 * single.tokens
