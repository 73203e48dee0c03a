"""Passes that read each distinct prompt once: the same logits and the same gradient as passes over whole rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from openrlhf_gagpo.backends import response_pass as module
from openrlhf_gagpo.backends.response_pass import ResponseScores, plain_pass, response_pass, shared_pass
from openrlhf_gagpo.training.rows import TokenRow
from openrlhf_gagpo.training.token_scores import Reading

WORDS = 24


def _model(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(4)
    settings: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return Qwen3ForCausalLM(Qwen3Config(**(settings | changes))).eval()


def _rows(prompts: Sequence[int], responses: Sequence[int]) -> list[TokenRow]:
    """For every prompt length a prompt, and with each as many rows as there are response lengths."""
    rng = np.random.default_rng(3)
    texts = [rng.integers(2, WORDS, size).tolist() for size in prompts]
    rows = [TokenRow(text, rng.integers(2, WORDS, size).tolist(), []) for text in texts for size in responses]
    return [rows[index] for index in rng.permutation(len(rows))]


def _by_hand(model: PreTrainedModel, row: TokenRow) -> Tensor:
    """Log-probabilities of one response, from a pass over its row alone."""
    logits = model(torch.tensor([row.prompt_ids + row.response_ids])).logits[0, len(row.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(row.response_ids)[:, None])[:, 0]


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("read", [plain_pass, shared_pass])
@pytest.mark.parametrize(("prompts", "responses"), [([4, 9, 1], [1, 5, 3]), ([7], [1]), ([2, 6], [4])])
def test_both_passes_give_what_each_row_gives_alone(
    read: Callable[..., ResponseScores], prompts: list[int], responses: list[int], chunk: int
) -> None:
    model, rows = _model(), _rows(prompts, responses)
    output = read(model, rows, 0, Reading(chunk=chunk))
    assert output.log_probs.shape == (len(rows), max(responses))
    assert not output.log_probs[output.mask == 0].any()
    assert output.entropy is None
    for row, values, mask in zip(rows, output.log_probs, output.mask, strict=True):
        torch.testing.assert_close(values[mask.bool()], _by_hand(model, row), atol=2e-6, rtol=1e-6)


def test_the_gradient_flows_through_the_prompts() -> None:
    rows = _rows([4, 9, 1], [1, 5, 3])
    gradients = []
    for read, chunk in ((plain_pass, 0), (shared_pass, 0), (plain_pass, 4), (shared_pass, 4)):
        model = _model().train()
        output = read(model, rows, 0, Reading(0.8, entropy=True, chunk=chunk))
        assert output.entropy is not None
        ((output.log_probs + 0.3 * output.entropy) * torch.linspace(-1, 1, len(rows))[:, None]).sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    plain, *others = gradients
    for name, value in plain.items():
        for other in others:
            torch.testing.assert_close(other[name], value, atol=2e-5, rtol=1e-4, msg=name)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the passes that were chosen."""
    names: list[str] = []
    for name in ("plain_pass", "shared_pass"):
        chosen = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *arguments, name=name, run=chosen: (names.append(name), run(*arguments))[1]
        )
    return names


def test_prompts_are_shared_where_that_is_worth_it(passes: list[str]) -> None:
    model = _model()
    response_pass(model, _rows([4, 9], [1, 5, 3]), 0, Reading())
    response_pass(model, _rows([4, 9, 3], [2]), 0, Reading())
    assert passes == ["shared_pass", "plain_pass"]


def test_prompts_are_not_shared_under_gradient_checkpointing(passes: list[str]) -> None:
    model, rows = _model(), _rows([4, 9], [1, 5, 3])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    kept = response_pass(model.train(), rows, 0, Reading()).log_probs
    again = response_pass(model.eval(), rows, 0, Reading()).log_probs
    # Without a gradient nothing is checkpointed.
    assert passes == ["plain_pass", "shared_pass"]
    torch.testing.assert_close(kept, again, atol=2e-6, rtol=1e-6)


def test_prompts_are_not_shared_through_a_sliding_window(passes: list[str]) -> None:
    model = _model(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    rows = _rows([4, 9], [1, 5, 3])
    output = response_pass(model, rows, 0, Reading())
    assert passes == ["plain_pass"]
    for row, values, mask in zip(rows, output.log_probs, output.mask, strict=True):
        torch.testing.assert_close(values[mask.bool()], _by_hand(model, row), atol=2e-6, rtol=1e-6)
