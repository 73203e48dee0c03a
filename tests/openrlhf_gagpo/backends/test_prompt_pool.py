"""Prompts that are read once in a rollout: what a warm pool gives is what a fresh one gives."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from openrlhf_gagpo.backends.prompt_pool import PromptPool
from openrlhf_gagpo.backends.sampler import generate_batch
from openrlhf_gagpo.rollout.types import Completion, SamplingParams

SHORT, LONG, MIDDLE = [3], [4, 5, 6, 7, 8, 9, 2], [5, 3, 5]


def _model(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(4)
    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return Qwen3ForCausalLM(Qwen3Config(**{**sizes, **heads, "initializer_range": 0.3, **changes})).eval()


def _answers(pool: PromptPool, prompts: Sequence[Sequence[int]]) -> list[Completion]:
    turns: list[Any] = [
        SimpleNamespace(prompt_ids=prompt, params=SamplingParams(5, seed=len(prompt))) for prompt in prompts
    ]
    return generate_batch(pool.model, turns, [1], pool)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The prompts that models have read."""
    seen: list[tuple[int, ...]] = []
    forward = PromptPool._forward

    def noted(pool: PromptPool, prompts: Sequence[tuple[int, ...]]) -> Any:
        seen.extend(prompts)
        return forward(pool, prompts)

    monkeypatch.setattr(PromptPool, "_forward", noted)
    return seen


def _same(one: Sequence[Completion], other: Sequence[Completion]) -> None:
    for first, second in zip(one, other, strict=True):
        assert first.token_ids == second.token_ids
        assert first.log_probs == pytest.approx(second.log_probs, abs=5e-6)


def test_a_prompt_is_read_once_until_the_pool_is_cleared(read: list[tuple[int, ...]]) -> None:
    model = _model()
    pool = PromptPool(model, 0)
    for batch in ([SHORT, MIDDLE, SHORT], [LONG, SHORT], [MIDDLE, LONG, SHORT, LONG], [MIDDLE]):
        given = _answers(pool, batch)
        known = len(read)
        _same(given, [answer for prompt in batch for answer in _answers(PromptPool(model, 0), [prompt])])
        del read[known:]
    assert read == [tuple(SHORT), tuple(MIDDLE), tuple(LONG)]
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    pool.clear()
    _same(_answers(pool, [LONG]), _answers(PromptPool(model, 0), [LONG]))


def test_a_full_pool_starts_again(read: list[tuple[int, ...]]) -> None:
    pool = PromptPool(_model(), 0, limit=6)
    for prompt in (LONG, SHORT, SHORT, LONG):
        given = _answers(pool, [prompt])
        known = len(read)
        _same(given, _answers(PromptPool(pool.model, 0), [prompt]))
        del read[known:]
    # The long prompt alone fills the pool, so it does not stay.
    assert read == [tuple(LONG), tuple(SHORT), tuple(LONG)]


def test_prompts_of_a_model_with_sliding_windows_are_not_kept(read: list[tuple[int, ...]]) -> None:
    model = _model(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    pool = PromptPool(model, 0)
    for _ in range(2):
        answers = _answers(pool, [LONG, SHORT, LONG])
        _same(answers[:1], answers[2:])
    assert read == [tuple(LONG), tuple(SHORT)] * 2
    row = torch.tensor([LONG + answers[0].token_ids])
    logits = model(row).logits[0, len(LONG) - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(answers[0].token_ids)[:, None])[:, 0]
    assert answers[0].log_probs == pytest.approx(expected.tolist(), abs=2e-6)
