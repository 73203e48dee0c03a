"""Generation in process: the right tokens, honest log-probabilities, and batches that never wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from agent_envs.base import EnvError, Reset, StepResult
from openrlhf_gagpo.backends import sampler
from openrlhf_gagpo.backends.sampler import BatchSampler, generate_batch
from openrlhf_gagpo.backends.sequence_pool import SequencePool
from openrlhf_gagpo.errors import RolloutError
from openrlhf_gagpo.rollout.episode import play_all
from openrlhf_gagpo.rollout.stopping import StopRule
from openrlhf_gagpo.rollout.types import Completion, Episode, EpisodeRequest, Prompt, SamplingParams

PAD, EOS = 0, 1
WORDS = 24


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(4)
    config = Qwen3Config(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(pad_token_id=PAD, eos_token_id=EOS)
    return model


def _prompts(count: int) -> list[list[int]]:
    """Prompts of 1 to 9 tokens, in no order of length."""
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(2, WORDS, (1 + (5 * i) % 9,), generator=generator).tolist() for i in range(count)]


def _turns(prompts: Sequence[Sequence[int]], **params: Any) -> list[Any]:
    params = {"max_new_tokens": 12} | params
    return [
        SimpleNamespace(prompt_ids=prompt, params=SamplingParams(seed=100 + i, **params))
        for i, prompt in enumerate(prompts)
    ]


def test_greedy_tokens_are_those_of_transformers(model: Qwen3ForCausalLM) -> None:
    prompts = _prompts(24)
    completions = generate_batch(_turns(prompts, temperature=0.0), [EOS], SequencePool(model, PAD))
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt) :]
        assert completion.token_ids == expected.tolist()
        assert completion.finish_reason == ("stop" if expected[-1] == EOS else "length")
        assert completion.log_probs == pytest.approx([0.0] * len(expected))
    # Both ways to end occur, and rows leave the batch at different times.
    assert len({len(completion.token_ids) for completion in completions}) > 2
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}


def test_an_action_ends_with_its_closing_tag(model: Qwen3ForCausalLM) -> None:
    """As if the tokens were pieces of tags: each answer is the beginning of the one that nothing stops."""
    pieces = ["<action>", "go", "</action>x"]

    def decode(ids: Sequence[int]) -> str:
        return "".join(pieces[token % len(pieces)] for token in ids)

    rule = StopRule(("action",), decode)
    prompts = _prompts(24) * 4
    whole, stopped = (
        generate_batch(_turns(prompts, temperature=5.0, stop=stop), [EOS], SequencePool(model, PAD))
        for stop in (None, rule)
    )
    shorter = 0
    for one, other in zip(whole, stopped, strict=True):
        ids = one.token_ids
        end = next((count for count in range(1, len(ids) + 1) if rule.ends(ids[:count])), len(ids))
        assert other.token_ids == ids[:end]
        assert other.log_probs == pytest.approx(one.log_probs[:end], abs=1e-5)
        assert other.finish_reason == ("stop" if end < len(ids) else one.finish_reason) or rule.ends(ids)
        shorter += end < len(ids)
    assert 5 < shorter < len(prompts) - 5


def _nucleus(log_probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """The distribution over the fewest tokens that reach ``top_p``, one position at a time."""
    result = torch.full_like(log_probs, -torch.inf)
    for position, row in enumerate(log_probs):
        mass, kept = 0.0, []
        for token in row.argsort(descending=True).tolist():
            kept.append(token)
            mass += row[token].exp().item()
            if mass >= top_p:
                break
        result[position, kept] = row[kept] - torch.logsumexp(row[kept], 0)
    return result


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (0.7, 0.5)])
def test_log_probs_are_those_of_a_full_forward_pass(model: Qwen3ForCausalLM, temperature: float, top_p: float) -> None:
    prompts = _prompts(16)
    turns = _turns(prompts, temperature=temperature, top_p=top_p)
    for prompt, completion in zip(prompts, generate_batch(turns, [EOS], SequencePool(model, PAD)), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / temperature, -1)
        if top_p < 1:
            expected = _nucleus(expected, top_p)
        expected = expected.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert completion.log_probs == pytest.approx(expected.tolist(), abs=1e-5)


def test_sampling_follows_the_distribution(model: Qwen3ForCausalLM) -> None:
    prompt = [5, 9, 2]
    turns = _turns([prompt] * 4000, max_new_tokens=1)
    first = torch.tensor([c.token_ids[0] for c in generate_batch(turns, [EOS], SequencePool(model, PAD))])
    with torch.no_grad():
        expected = torch.softmax(model(torch.tensor([prompt])).logits[0, -1], -1)
    seen = torch.bincount(first, minlength=WORDS) / len(first)
    # Five standard errors.
    assert ((seen - expected).abs() <= 5 * (expected * (1 - expected) / len(first)).sqrt() + 1e-3).all()


def test_tokens_depend_on_the_seed_and_not_on_the_batch(model: Qwen3ForCausalLM) -> None:
    turns = _turns(_prompts(20))
    together = generate_batch(turns, [EOS], SequencePool(model, PAD))
    backwards = generate_batch(turns[::-1], [EOS], SequencePool(model, PAD))[::-1]
    alone = [generate_batch([turn], [EOS], SequencePool(model, PAD))[0] for turn in turns]
    for one, two, three in zip(together, backwards, alone, strict=True):
        assert one.token_ids == two.token_ids == three.token_ids
        assert one.log_probs == pytest.approx(three.log_probs, abs=1e-5)
    same = generate_batch(_turns([[5, 9]] * 8), [EOS], SequencePool(model, PAD))
    assert len({tuple(completion.token_ids) for completion in same}) == 8


def test_requests_of_a_batch_keep_their_own_limits(model: Qwen3ForCausalLM) -> None:
    turns = [
        SimpleNamespace(prompt_ids=[3, 4], params=SamplingParams(limit, temperature, 1.0, seed=1))
        for limit, temperature in [(1, 1.0), (9, 0.0), (3, 1.0)]
    ]
    completions = generate_batch(turns, [], SequencePool(model, PAD))
    assert [len(completion.token_ids) for completion in completions] == [1, 9, 3]
    assert completions[0].token_ids == completions[2].token_ids[:1]
    assert all(completion.finish_reason == "length" for completion in completions)


class Session:
    """An episode of ``length`` steps whose environment fails in step ``fault``."""

    def __init__(self, length: int, fault: int | None) -> None:
        self.length, self.fault, self.taken = length, fault, 0

    async def reset(self, task: str, seed: int) -> Reset:
        await asyncio.sleep(0)
        if self.fault == 0:
            raise EnvError("no start")
        return Reset("", "s")

    async def step(self, action: str) -> StepResult:
        await asyncio.sleep(0)
        self.taken += 1
        if self.taken == self.fault:
            raise EnvError("broke")
        return StepResult("", "s", 0.0, terminated=self.taken == self.length, truncated=False)

    async def close(self) -> None:
        await asyncio.sleep(0)


class Prompts:
    def build(self, *_: object) -> Prompt:
        return Prompt([1], "", [])


def _play(policy: BatchSampler, plans: Sequence[tuple[int, int | None]], concurrency: int) -> list[Episode]:
    sessions = iter([Session(*plan) for plan in plans])

    async def open_session() -> Session:
        return next(sessions)

    async def play() -> list[Episode]:
        policy.begin(len(plans), concurrency)
        requests = [EpisodeRequest("task", "g", f"t{i}", 0, i) for i in range(len(plans))]
        return await asyncio.wait_for(
            play_all(
                requests,
                open_session,
                policy,
                Prompts(),
                sampling=SamplingParams(4),
                decode=lambda ids: "go",
                think=False,
                action_tags=False,
                concurrency=concurrency,
                on_done=lambda episode: policy.episode_done(),
            ),
            timeout=20,
        )

    return asyncio.run(play())


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were generated, by a stand-in for the model."""
    sizes: list[int] = []

    def generate(turns: Sequence[Any], *_: Any) -> list[Completion]:
        sizes.append(len(turns))
        return [Completion([7], [-0.5], "stop") for _ in turns]

    monkeypatch.setattr(sampler, "generate_batch", generate)
    return sizes


def test_a_batch_holds_every_running_episode(batches: list[int]) -> None:
    episodes = _play(BatchSampler(None, [EOS], PAD), [(3, None), (1, None), (5, None), (3, 2)], concurrency=8)
    assert batches == [4, 3, 2, 1, 1]
    assert [len(episode.steps) for episode in episodes] == [3, 1, 5, 1]


def test_a_new_episode_takes_the_place_of_one_that_ended(batches: list[int]) -> None:
    _play(BatchSampler(None, [EOS], PAD), [(1, None), (3, None), (2, None)], concurrency=2)
    assert batches == [2, 2, 2]


def test_large_batches_are_cut(batches: list[int]) -> None:
    _play(BatchSampler(None, [EOS], PAD, max_batch=3), [(1, None)] * 8, concurrency=8)
    assert batches == [3, 3, 2]


@settings(max_examples=120, deadline=None)
@given(
    plans=st.lists(st.tuples(st.integers(1, 5), st.none() | st.integers(0, 5)), min_size=1, max_size=12),
    concurrency=st.integers(1, 14),
)
def test_no_mixture_of_lengths_and_faults_stalls(plans: list[tuple[int, int | None]], concurrency: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        answer = Completion([7], [-0.5], "stop")
        patch.setattr(sampler, "generate_batch", lambda turns, *_: [answer] * len(turns))
        episodes = _play(BatchSampler(None, [EOS], PAD), plans, concurrency)
    for episode, (length, fault) in zip(episodes, plans, strict=True):
        broke = fault is not None and fault <= length
        assert episode.faulted is broke
        assert len(episode.steps) == (max(fault - 1, 0) if broke else length)


def test_the_sampler_can_be_used_again_after_a_failure(batches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = BatchSampler(None, [EOS], PAD)
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "generate_batch", lambda *_: 1 / 0)
        with pytest.raises(RolloutError, match="ZeroDivisionError"):
            _play(policy, [(2, None)] * 3, concurrency=3)
    assert all(not episode.faulted for episode in _play(policy, [(2, None)] * 3, concurrency=3))
