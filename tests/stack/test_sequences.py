"""Transcripts and equal rows in the distributed workers: OpenRLHF's own models and our update code, without processes
around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from openrlhf_gagpo.losses import ppo
from openrlhf_gagpo.training.objective import merge_sums
from openrlhf_gagpo.training.rows import OptimizerStep, TokenRow, TrainingRow
from openrlhf_gagpo.training.settings import BatchSettings
from support.models import make_critic, make_model
from support.objectives import objective
from support.real_stack import with_repeats
from support.transcripts import apart, segments

BATCHES = BatchSettings(100, 2, None, 3, None)


class ReadEach(BatchSettings):
    """Reads every row in all passes."""

    def plan_forward(self, rows: Sequence[TokenRow], ranks: int = 1) -> list[OptimizerStep]:
        return replace(self, rows_per_step=len(rows)).plan_training(rows, ranks, seed=0)


class Numbers(NamedTuple):
    """What the workers make of some rows."""

    log_probs: list[Tensor]
    values: list[Tensor]
    sums: dict[str, float]
    gradients: dict[str, Tensor]
    tokens: int
    """Tokens that the policy read in training."""
    values_read: int
    """Tokens that the critic read in training."""


def one_rank(forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
    """A group of one worker in this process."""

    def scatter(method: str, shards: Sequence[Any], *, release: bool) -> list[Any]:
        assert (method, release) == ("forward_passes", True)
        with torch.no_grad():
            return [[forward(*inputs) for inputs in shard] for shard in shards]

    return SimpleNamespace(ranks=1, scatter=scatter, wait=lambda refs, _: refs)


def numbers(rows: Sequence[TrainingRow], actor: Any, critic: Any, batches: BatchSettings = BATCHES) -> Numbers:
    from openrlhf_gagpo.backends.distributed.actors import StepPolicyTrainer
    from openrlhf_gagpo.backends.distributed.batches import Passes, critic_steps, policy_steps
    from openrlhf_gagpo.backends.distributed.critic import StepCriticTrainer
    from openrlhf_gagpo.backends.distributed.response_pass import response_pass

    passes = Passes(rows, batches.plan_forward(rows), pad_id=0)
    plan = batches.plan_training(rows, 1, seed=0)
    strategy: Any = SimpleNamespace(
        ring_attn_group=None,
        accumulate=lambda loss, *_: loss.backward(),
        args=SimpleNamespace(train=SimpleNamespace(logit_chunk=0)),
    )
    totals: dict[str, float] = {}
    tokens = values_read = 0

    actor.eval()
    policy = one_rank(lambda ids, actions, mask: response_pass(actor, ids, mask, actions, strategy)[0])
    log_probs = passes.log_probs(policy, release=True).by_row()
    steps = policy_steps(rows, plan, [row + 0.1 for row in log_probs], [row - 0.3 for row in log_probs], 0, 1)[0]
    trainer = SimpleNamespace(
        actor=actor, strategy=strategy, actor_optim=None,
        objective=objective(ppo.NAME, kl_coef=0.05, entropy_coef=0.02),
    )  # fmt: skip
    actor.zero_grad()
    for step in steps:
        for batch, actions in step.micro_batches:
            tokens += int(batch.attention_mask.sum())
            merge_sums(totals, StepPolicyTrainer._backward(trainer, batch, actions, step.scale, True))
    gradients = {name: p.grad.clone() for name, p in actor.named_parameters()}

    critic.eval()
    group = one_rank(lambda ids, actions, mask: critic(ids, action_mask=actions, attention_mask=mask))
    values = passes.values(group, release=True).by_row()
    trainer = SimpleNamespace(critic=critic, strategy=strategy, critic_optim=None, value_clip=0.5)
    critic.zero_grad()
    for step in critic_steps(rows, lambda read: batches.plan_training(read, 1, seed=0), 0, 1)[0]:
        for batch, targets in step.micro_batches:
            values_read += int(batch.attention_mask.sum())
            part = StepCriticTrainer._backward(trainer, batch, targets, step.scale, True)
            # Rounding decides whether a value that moved by less than the clip counts as clipped.
            merge_sums(totals, {f"critic_{name}": value for name, value in part.items() if name != "clip"})
    gradients |= {f"critic {name}": p.grad.clone() for name, p in critic.named_parameters() if p.grad is not None}
    return Numbers(log_probs, values, totals, gradients, tokens, values_read)


def _flat(values: Sequence[Tensor]) -> np.ndarray:
    return torch.cat(list(values)).numpy()


def assert_equal(found: Numbers, expected: Numbers) -> None:
    np.testing.assert_allclose(_flat(found.log_probs), _flat(expected.log_probs), atol=1e-5)
    np.testing.assert_allclose(_flat(found.values), _flat(expected.values), atol=1e-5)
    assert found.sums == pytest.approx(expected.sums, rel=1e-4, abs=1e-5)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, value in found.gradients.items():
        torch.testing.assert_close(value, expected.gradients[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """OpenRLHF's policy and critic."""
    from openrlhf_gagpo.backends.distributed import compat

    compat.install()
    from openrlhf.models import Actor, get_llm_for_sequence_regression

    model = make_model(tmp_path / "model", tied=False)
    head = make_critic(model, tmp_path / "critic")
    options: dict[str, Any] = {"attn_implementation": "sdpa", "param_dtype": "fp32", "packing_samples": request.param}
    critic = get_llm_for_sequence_regression(
        str(head), "critic", normalize_reward=False, init_value_head=False, value_head_prefix="score", **options
    )
    return Actor(str(model), **options), critic


def test_a_transcript_gives_the_numbers_of_one_row_per_action(models: tuple[Any, Any]) -> None:
    """Log-probabilities, values, loss, KL, entropy and gradients."""
    rows = segments(20, (5, 3, 4, 1, 6, 2))
    whole, single = (numbers(given, *models) for given in (rows, apart(rows)))
    assert_equal(whole, single)
    assert whole.tokens < 0.5 * single.tokens


@pytest.mark.parametrize("by_token", [False, True])
def test_equal_rows_are_read_once_and_give_the_numbers_of_reading_each(models: tuple[Any, Any], by_token: bool) -> None:
    """Advantages, clip ranges, old and sampled log-probabilities and targets stay those of each row."""
    rng = np.random.default_rng(4)
    apart_rows = with_repeats(apart(segments(20, (2, 3, 1))), 24)
    rows = [
        replace(
            row,
            token_advantages=rng.normal(size=len(row.response_ids)) if by_token else None,
            token_value_targets=rng.normal(size=len(row.response_ids)) if by_token else None,
        )
        for row in apart_rows
    ]
    each = ReadEach(100, 2, None, 3, None, equal_rows_once=False)
    once, plain = (numbers(rows, *models, batches) for batches in (BATCHES, each))
    assert_equal(once, plain)
    assert once.tokens < 0.35 * plain.tokens
    assert once.values_read < 0.35 * plain.values_read
