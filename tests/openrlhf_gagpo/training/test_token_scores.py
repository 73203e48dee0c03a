"""Log-probabilities and entropies at chosen positions: the numbers and gradients of torch's own operations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.training import token_scores
from openrlhf_gagpo.training.token_scores import (
    Reading,
    fill,
    log_probs_of,
    score_logits,
    score_positions,
)

WORDS = 40


def test_log_probs_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0]]])
    targets = torch.tensor([[1, 1]])
    expected = torch.tensor([[math.log(3 / 4), math.log(1 / 5)]])
    torch.testing.assert_close(log_probs_of(logits, targets), expected)
    # Dividing by 0.5 squares the odds: 9 to 1 and 16 to 1.
    expected = torch.tensor([[math.log(9 / 10), math.log(1 / 17)]])
    torch.testing.assert_close(log_probs_of(logits, targets, temperature=0.5), expected)


def test_log_probs_are_float32_from_half_precision_and_differentiate() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    values = log_probs_of(logits, targets, 0.7)
    assert values.dtype == torch.float32
    values.sum().backward()
    one_hot = torch.nn.functional.one_hot(targets, 5)
    expected = (one_hot - torch.softmax(logits.detach().float() / 0.7, -1)) / 0.7
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.float(), expected, atol=1e-2, rtol=1e-2)


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    expected = torch.tensor([math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))])
    found = score_logits(logits, torch.tensor([0, 1]), entropy=True).entropy
    assert found is not None
    torch.testing.assert_close(found, expected)


def plain(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    every = torch.log_softmax(logits / temperature, -1)
    return every.gather(-1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)


@pytest.mark.parametrize("block", [1, 3 * WORDS, 2**22])
@pytest.mark.parametrize("uses", [(1.0, 0.0), (0.0, 1.0), (1.0, -0.5)])
def test_gradients_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, block: int, uses: tuple[float, float]) -> None:
    monkeypatch.setattr(token_scores, "_BLOCK", block)
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, WORDS)).requires_grad_()
    targets, weights = torch.randint(WORDS, (7,)), torch.randn(2, 7)
    scores = score_logits(logits, targets, 0.7, entropy=True)
    assert scores.entropy is not None
    log_probs, entropy = plain(logits, targets, 0.7)
    torch.testing.assert_close(scores.log_probs, log_probs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(scores.entropy, entropy, atol=1e-6, rtol=1e-6)
    gradients = []
    for first, second in ((scores.log_probs, scores.entropy), (log_probs, entropy)):
        # A term that is not used gives no gradient at all, as in a loss without an entropy bonus.
        terms = [use * (w * part).sum() for use, w, part in zip(uses, weights, (first, second), strict=True) if use]
        gradients += torch.autograd.grad(torch.stack(terms).sum(), logits)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_no_tokens_give_no_values_and_a_zero_gradient() -> None:
    logits = torch.randn(0, WORDS, requires_grad=True)
    scores = score_logits(logits, torch.empty(0, dtype=torch.long), entropy=True)
    out = fill(scores.log_probs, torch.zeros(2, 3))
    out.sum().backward()
    assert out.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert logits.grad is not None


def model(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(4)
    settings = {
        "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.1,
    }  # fmt: skip
    return Qwen3ForCausalLM(Qwen3Config(**settings | changes))


def scored(chosen: PreTrainedModel, reading: Reading, ids: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The numbers at the places of ``mask`` and the gradient of a weighted sum of them."""
    positions, targets = mask.flatten().nonzero()[:, 0], ids.roll(-1, 1)[mask.bool()]
    scores = score_positions(
        lambda: chosen(input_ids=ids, use_cache=False), chosen.get_output_embeddings(), positions, targets, reading
    )
    assert (scores.entropy is not None) == reading.entropy
    values = torch.stack([scores.log_probs, *([] if scores.entropy is None else [scores.entropy])])
    chosen.zero_grad()
    (values * torch.linspace(-1, 1, values.numel()).view_as(values)).sum().backward()
    return values.detach(), {name: p.grad.clone() for name, p in chosen.named_parameters() if p.grad is not None}


# Two orders of the same sums differ by a few units in the last place of float32, and not at all in float64.
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 3e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [0, 1, 4, 100])
def test_chosen_positions_give_what_all_positions_give(
    chunk: int, tied: bool, dtype: torch.dtype, close: float
) -> None:
    chosen = model(tie_word_embeddings=tied).train().to(dtype)
    ids = torch.randint(WORDS, (3, 9))
    mask = torch.zeros(3, 9, dtype=torch.long)
    mask[0, 2:8] = mask[1, :1] = mask[2, 5:7] = 1
    log_probs, entropy = plain(chosen(ids).logits.flatten(0, 1), ids.roll(-1, 1).flatten(), 0.6)
    whole = torch.stack([log_probs, entropy])[:, mask.flatten().bool()]
    (whole * torch.linspace(-1, 1, whole.numel()).view_as(whole)).sum().backward()
    expected = {name: p.grad.clone() for name, p in chosen.named_parameters() if p.grad is not None}
    values, gradients = scored(chosen, Reading(0.6, entropy=True, chunk=chunk), ids, mask)
    assert values.dtype == dtype
    torch.testing.assert_close(values, whole.detach(), atol=close, rtol=0)
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        # In units of the largest number, since single ones are differences of larger ones.
        scale = value.abs().max()
        torch.testing.assert_close(gradients[name] / scale, value / scale, atol=close, rtol=0, msg=name)


@pytest.mark.parametrize("chunk", [0, 2])
def test_the_output_layer_sees_the_chosen_positions_alone(chunk: int) -> None:
    chosen = model()
    rows: list[int] = []
    chosen.lm_head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].numel() // 32))
    mask = torch.zeros(2, 6, dtype=torch.long)
    mask[:, 2:5] = 1
    scored(chosen, Reading(chunk=chunk), torch.randint(WORDS, (2, 6)), mask)
    # With chunks: a probe, each chunk, and each again in the backward pass.
    assert rows == ([1, *[2] * 6] if chunk else [6])


def test_what_a_model_does_to_its_logits_counts_and_rules_out_chunks() -> None:
    class Capped(Qwen3ForCausalLM):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            output = super().forward(*arguments, **named)
            output.logits = output.logits.tanh()
            return output

    torch.manual_seed(4)
    capped = Capped(model().config)
    ids = torch.randint(WORDS, (1, 5))
    positions, targets = torch.tensor([1, 3]), ids[0, [2, 4]]

    def score(chunk: int) -> Tensor:
        head = capped.get_output_embeddings()
        return score_positions(lambda: capped(input_ids=ids), head, positions, targets, Reading(chunk=chunk)).log_probs

    expected = torch.log_softmax(capped(ids).logits[0, positions], -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(score(0), expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(RunError, match=r"set --train\.logit_chunk to 0"):
        score(1)


def test_a_model_without_an_output_layer_is_refused() -> None:
    with pytest.raises(RunError, match="does not name its output layer"):
        score_positions(lambda: None, None, torch.tensor([0]), torch.tensor([0]), Reading())
