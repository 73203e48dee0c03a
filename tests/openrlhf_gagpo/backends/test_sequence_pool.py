"""Sequences that are read once in a rollout: sampling with a warm pool is sampling with full passes of the model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from openrlhf_gagpo.backends.sampler import generate_batch
from openrlhf_gagpo.backends.sequence_pool import SequencePool
from openrlhf_gagpo.rollout.types import Completion, SamplingParams

EOS = 1
SHORT, LONG, MIDDLE = [3], [4, 5, 6, 7, 8, 9, 2], [5, 3, 5]


def _model(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(4)
    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return Qwen3ForCausalLM(Qwen3Config(**{**sizes, **heads, "initializer_range": 0.3, **changes})).eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return _model()


class Noted(SequencePool):
    """A pool that remembers what its model has read: how many sequences in each pass, and how many tokens in all."""

    def __init__(self, model: Any, **options: Any) -> None:
        self.passes: list[int] = []
        self.tokens = 0
        super().__init__(model, 0, **options)

    def _pass(self, ways: Any) -> list[int]:
        self.passes.append(len(ways))
        self.tokens += sum(len(tokens) for _, tokens in ways)
        return super()._pass(ways)


def _turns(requests: Sequence[tuple[Sequence[int], int]], length: int = 5) -> list[Any]:
    """Turns from prompts and seeds."""
    return [SimpleNamespace(prompt_ids=prompt, params=SamplingParams(length, seed=seed)) for prompt, seed in requests]


def _answers(pool: SequencePool, *prompts: Sequence[int], length: int = 5) -> list[Completion]:
    return generate_batch(_turns([(prompt, len(prompt)) for prompt in prompts], length), [EOS], pool)


@torch.inference_mode()
def _check(model: Any, turn: Any, answer: Completion) -> None:
    """Compare an answer with what the turn's draws choose from one full pass over it."""
    prompt, ids = turn.prompt_ids, answer.token_ids
    log_probs = torch.log_softmax(model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1], -1)
    mass = log_probs.double().exp().cumsum(-1)
    uniform = random.Random(turn.params.seed)
    draws = torch.tensor([[uniform.random()] for _ in ids], dtype=torch.float64)
    assert ids == (mass <= draws * mass[:, -1:]).sum(-1).tolist()
    assert answer.log_probs == pytest.approx(log_probs.gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist(), abs=5e-6)
    assert answer.finish_reason == ("stop" if ids[-1] == EOS else "length")
    assert EOS not in ids[:-1]
    assert len(ids) == turn.params.max_new_tokens or ids[-1] == EOS


def _same(one: Sequence[Completion], other: Sequence[Completion]) -> None:
    for first, second in zip(one, other, strict=True):
        assert first.token_ids == second.token_ids
        assert first.finish_reason == second.finish_reason
        assert first.log_probs == pytest.approx(second.log_probs, abs=5e-6)


# Few words, so that prompts begin alike, are the beginning of another, or another with an answer.
prompts = st.lists(st.integers(2, 4), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(
    batches=st.lists(st.lists(st.tuples(prompts, st.integers(0, 2)), min_size=1, max_size=4), min_size=1, max_size=3),
    limit=st.sampled_from([0, 10_000, 2**28]),
)
def test_sampling_with_a_pool_is_sampling_with_full_passes(model: PreTrainedModel, batches: Any, limit: int) -> None:
    pool = Noted(model, limit=limit)
    for batch in batches:
        turns = _turns(batch)
        answers = generate_batch(turns, [EOS], pool)
        for turn, answer in zip(turns, answers, strict=True):
            _check(model, turn, answer)
    if limit == 2**28:
        before = pool.tokens
        generate_batch(turns, [EOS], pool)
        assert pool.tokens == before


def test_nothing_is_read_twice_until_the_pool_is_cleared() -> None:
    model = _model()
    pool = Noted(model)
    first = _answers(pool, SHORT, MIDDLE, SHORT, LONG)
    assert pool.passes[0] == 3
    read = len(pool.passes)
    for batch in ([SHORT], [LONG, SHORT], [MIDDLE, LONG, SHORT]):
        _answers(pool, *batch)
    assert len(pool.passes) == read
    # Of a prompt that begins like another, only the rest is read.
    before = pool.tokens
    _answers(pool, [*LONG, 3, 3], length=1)
    assert pool.tokens == before + 2
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    pool.clear()
    assert pool.bytes() == 0
    changed = _answers(pool, SHORT, MIDDLE, SHORT, LONG)
    assert changed != first
    _same(changed, _answers(SequencePool(model, 0), SHORT, MIDDLE, SHORT, LONG))


def test_memory_stays_within_twice_the_limit_and_one_pass(model: PreTrainedModel) -> None:
    # Per token, keys and values of two heads of 8 numbers in each of 2 layers; 24 logits per sequence.
    token, logits, limit = 4 * 2 * 2 * 2 * 8, 4 * 24, 20_000
    pool = Noted(model, limit=limit)
    rows = [[word] * 5 for word in range(2, 10)]
    expected = _answers(SequencePool(model, 0), *rows, length=30)
    largest = 0
    for _ in range(2):
        read = len(pool.passes)
        _same(_answers(pool, *rows, length=30), expected)
        largest = max(largest, pool.bytes())
        # A full pool is emptied by the next batch, whose prompts are then read again.
        assert pool.passes[read] == len(rows)
    assert limit < largest <= 2 * limit + len(rows) * (5 * token + logits)


def test_a_batch_that_only_grows_is_never_put_together_again(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else a long generation would copy all that it has read for every token."""
    pool = SequencePool(model, 0)
    paths: list[int] = []
    monkeypatch.setattr(pool, "_path", lambda node: paths.append(node))
    _answers(pool, SHORT, LONG, MIDDLE, length=40)
    assert not paths


def test_a_model_with_sliding_windows_keeps_no_sequences() -> None:
    model = _model(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    pool = Noted(model)
    for _ in range(2):
        answers = _answers(pool, LONG, SHORT, LONG)
        _same(answers[:1], answers[2:])
    half = len(pool.passes) // 2
    assert pool.passes[:half] == pool.passes[half:]
    assert pool.bytes() == 0
    row = torch.tensor([LONG + answers[0].token_ids])
    logits = model(row).logits[0, len(LONG) - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(answers[0].token_ids)[:, None])[:, 0]
    assert answers[0].log_probs == pytest.approx(expected.tolist(), abs=2e-6)
