"""Values against closed forms and brute force, and the bound on what was not enumerated."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from agent_envs import ExactModel, Move, View
from openrlhf_gagpo.rollout.parse import parse_action
from openrlhf_gagpo.rollout.types import Prompt
from openrlhf_gagpo.truth.exact import Node, Replies, Rules, explore
from openrlhf_gagpo.truth.replies import ReplyReader
from openrlhf_gagpo.truth.scores import score, state_group_sizes


class Corridor(ExactModel):
    """Places 0 to 2 in a row; reaching the last pays 1 and ends."""

    returns = (0.0, 1.0)

    def start(self, task: str, seed: int) -> Hashable:
        return 0

    def view(self, state: Hashable, step: int) -> View:
        return View(f"place {state}", f"place {state}", ("on",))

    def move(self, state: Hashable, action: str) -> Move | None:
        assert isinstance(state, int)
        return Move(state + 1, float(state == 1), state == 1) if action == "on" else None


def always(chance: float, missed: float = 0.0):
    def answer(shown: Sequence[tuple[Node, View]]) -> list[Replies]:
        return [Replies({"on": chance, "stand": 1 - chance - missed}, missed)] * len(shown)

    return answer


def test_values_are_the_chances_of_two_steps_forward_in_time() -> None:
    p, gamma = 0.3, 0.9
    explored = explore(Rules(Corridor(), 3), [Node(0, 0)], always(p))
    one = explored.solve(1.0)
    assert one.state_value(Node(0, 0)).value == pytest.approx(p**2 + 2 * p**2 * (1 - p))
    assert one.state_value(Node(0, 2)).value == 0
    assert one.state_value(Node(0, 0)).bound == 0
    discounted = explored.solve(gamma)
    assert discounted.state_value(Node(0, 0)).value == pytest.approx(gamma * p**2 + gamma**2 * 2 * p**2 * (1 - p))
    assert discounted.action_value(Node(1, 2), "on").value == 1
    assert discounted.advantage(Node(1, 2), "stand").value == pytest.approx(-p)


def test_the_bound_covers_whatever_was_not_enumerated() -> None:
    rules, roots = Rules(Corridor(), 4), [Node(0, 0)]
    cut = explore(rules, roots, always(0.3, missed=0.1)).solve(0.9)
    for hidden in (0.0, 0.05, 0.1):
        true = explore(rules, roots, always(0.3 + hidden)).solve(0.9)
        for node, (value, bound) in cut.at.items():
            assert abs(true.state_value(node).value - value) <= bound + 1e-12
            for action in ("on", "stand"):
                guess, slack = cut.advantage(node, action)
                assert abs(true.advantage(node, action).value - guess) <= slack + 1e-12


class Letters:
    """A tokenizer of four words and an end."""

    words = ("<end>", "on", "up", "go")
    eos_token_id = pad_token_id = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return " ".join(self.words[i] for i in ids if i)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [self.words.index(word) for word in text.split()]


def never(listed: Collection[str], beginning: str) -> bool:
    return False


@pytest.fixture(scope="module")
def reader() -> ReplyReader:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4, initializer_range=1.0, max_position_embeddings=16, **sizes))
    return ReplyReader(model.eval(), Letters(), [0], 3, 0.8, False, never, smallest=0.0)


def brute_force(reader: ReplyReader, prompt: list[int]) -> dict[str, float]:
    """Sum over every response of at most three tokens, one pass each."""
    sums: dict[str, float] = {}
    for response in product(range(4), repeat=3):
        ended = 0 in response
        kept = response[: response.index(0) + 1] if ended else response
        if response[len(kept) :] != (0,) * (3 - len(kept)):
            continue
        logits = reader.model(torch.tensor([[*prompt, *kept]])).logits[0, len(prompt) - 1 : -1].double()
        log_probs = torch.log_softmax(logits / reader.temperature, dim=-1)
        chance = float(log_probs[range(len(kept)), list(kept)].sum().exp().detach())
        text = reader.tokenizer.decode(kept, skip_special_tokens=True)
        action = parse_action(text, think=False, action_tags=False, finish_reason="stop" if ended else "length").action
        sums[action] = sums.get(action, 0.0) + chance
    return sums


def test_replies_equal_brute_force(reader: ReplyReader) -> None:
    prompts = [Prompt([1, 2], "on up", []), Prompt([3], "go", [])]
    found = reader.read(prompts, [["on"], ["go on"]])
    for prompt, replies in zip(prompts, found, strict=True):
        expected = brute_force(reader, prompt.token_ids)
        assert sum(expected.values()) == pytest.approx(1)
        assert replies.actions == pytest.approx(expected, abs=1e-6)
        assert replies.missed == 0


def test_listed_actions_are_followed_and_the_rest_is_counted(reader: ReplyReader) -> None:
    prompt = Prompt([1, 2], "on up", [])
    few = ReplyReader(reader.model, reader.tokenizer, [0], 3, 0.8, False, never, smallest=0.2)
    (cut,), whole = few.read([prompt], [["go on"]]), brute_force(reader, [1, 2])
    assert cut.missed > 0
    assert sum(cut.actions.values()) + cut.missed == pytest.approx(1)
    assert cut.actions["go on"] == pytest.approx(whole["go on"], abs=1e-6)
    assert all(chance <= whole[action] + 1e-6 for action, chance in cut.actions.items())


def test_a_hopeless_beginning_counts_as_one_text(reader: ReplyReader) -> None:
    def hopeless(listed: Collection[str], beginning: str) -> bool:
        return not any(action.startswith(beginning) for action in listed)

    short = replace(reader, hopeless=hopeless)
    (found,), whole = short.read([Prompt([1, 2], "on up", [])], [["go on"]]), brute_force(reader, [1, 2])
    assert found.missed == 0
    assert sum(found.actions.values()) == pytest.approx(1)
    assert found.actions["go on"] == pytest.approx(whole["go on"], abs=1e-6)
    assert len(found.actions) < len(whole)


def test_only_the_widest_are_followed(reader: ReplyReader) -> None:
    (found,) = replace(reader, widest=1).read([Prompt([1, 2], "on up", [])], [[]])
    assert len(found.actions) == 1
    assert found.missed + sum(found.actions.values()) == pytest.approx(1)


def test_a_score_of_half_right_signs() -> None:
    given, true = np.array([2.0, -2.0, 4.0, 0.0]), np.array([1.0, -1.0, -2.0, 1.0])
    sizes = state_group_sizes(["g"] * 4, ["a", "a", "b", "c"])
    assert sizes.tolist() == [2, 2, 1, 1]
    keep = np.array([True, True, True, False])
    found = score("x", 1.0, given, true, np.zeros(4), keep, sizes, scaled=True)
    assert (found.steps, found.signed) == (3, 3)
    assert found.sign_accuracy == pytest.approx(2 / 3)
    assert found.errors["1"].bias == pytest.approx(4)
    assert found.errors["2-3"].variance == pytest.approx(0)
    assert found.errors["8+"].bias is None
    uncertain = score("x", 1.0, given, true, np.full(4, 1.5), keep, sizes, scaled=True)
    assert (uncertain.signed, uncertain.sign_accuracy) == (1, 0)
