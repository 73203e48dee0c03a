"""Conversations that grow token by token."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent_envs.base import PromptTemplate, Reset, StepResult
from openrlhf_gagpo.errors import CreditError, PromptTemplateError, PromptTooLong
from openrlhf_gagpo.export.prompts import PromptReader
from openrlhf_gagpo.rollout.episode import play_episode
from openrlhf_gagpo.rollout.records import read_episodes, write_episodes
from openrlhf_gagpo.rollout.retrace import retrace
from openrlhf_gagpo.rollout.transcript import TranscriptBuilder
from openrlhf_gagpo.rollout.types import (
    Completion,
    Episode,
    EpisodeRequest,
    Exchange,
    Place,
    Prompt,
    SamplingParams,
    Step,
)
from openrlhf_gagpo.training.rows import sequence_numbers
from openrlhf_gagpo.training.table import StepTable
from openrlhf_gagpo.warmstart.tokenizer import build_tokenizer
from support.transcripts import CHATML, merging_tokenizer

TEMPLATE = PromptTemplate(
    system="Play.", turn="Reach {{ task }}. Seen: {{ observation }}", later="Seen {{ step }}: {{ observation }}"
)
END = "<|im_end|>"
STRIPPED = CHATML.replace(
    "{{ m.content }}", "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
)


def builder(tokenizer: Any = None, template: PromptTemplate = TEMPLATE, **changes: Any) -> TranscriptBuilder:
    options: dict[str, Any] = {"think": False, "action_tags": True, "list_actions": True, "max_prompt_tokens": 10**4}
    return TranscriptBuilder(template, tokenizer or merging_tokenizer(), **(options | changes))


def answered(prompt: Prompt, text: str, tokenizer: Any, *, extra: Sequence[int] = ()) -> Exchange:
    ids = [*tokenizer.encode(text, add_special_tokens=False), *extra]
    return Exchange(prompt, Completion(ids, [-1.0] * len(ids), "stop"), tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("sampled_end", [True, False])
@pytest.mark.parametrize("think", [True, False])
def test_the_next_prompt_is_the_last_one_what_was_sampled_and_the_new_turn(sampled_end: bool, think: bool) -> None:
    tokenizer = merging_tokenizer()
    prompts = builder(tokenizer, think=think)
    opened = "<think>\n" if think else ""
    first = prompts.build("A", (), "a door", (), 0)
    assert tokenizer.decode(first.token_ids) == first.text
    assert first.text == (
        f"<|im_start|>system\nPlay.{END}\n<|im_start|>user\nReach A. Seen: a door{END}\n<|im_start|>assistant\n{opened}"
    )
    # In another way than the tokenizer would cut the same text, which has to stay as it is.
    odd = [tokenizer.convert_tokens_to_ids(letter) for letter in "<action>"] + tokenizer.encode(
        "\n", add_special_tokens=False
    )
    exchange = answered(first, "go</action>", tokenizer, extra=[tokenizer.eos_token_id] * sampled_end)
    exchange.completion.token_ids[:0] = odd
    second = prompts.build("A", [None], "a hall", (), 1, exchange)  # type: ignore[list-item]
    sampled = exchange.completion.token_ids
    assert second.token_ids[: len(first.token_ids) + len(sampled)] == first.token_ids + sampled
    rest = tokenizer.decode(second.token_ids[len(first.token_ids) + len(sampled) :])
    marker = "" if sampled_end else END
    assert rest == f"{marker}\n<|im_start|>user\nSeen 1: a hall{END}\n<|im_start|>assistant\n{opened}"
    assert second.text.endswith(rest)
    assert second.messages[-2:] == [
        {"role": "assistant", "content": exchange.response},
        {"role": "user", "content": "Seen 1: a hall"},
    ]
    assert (second.sequence, second.history_dropped) == (0, 0)


def test_without_a_chat_template_the_text_goes_on() -> None:
    tokenizer = merging_tokenizer()
    prompts = builder(tokenizer, chat_template="none")
    first = prompts.build("A", (), "a door", (), 0)
    second = prompts.build("A", [None], "a hall", (), 1, answered(first, "go", tokenizer))  # type: ignore[list-item]
    assert tokenizer.decode(second.token_ids) == "Play.\n\nReach A. Seen: a doorgo\nSeen 1: a hall" == second.text


def test_a_tokenizer_that_marks_the_start_of_a_text_marks_no_later_turn() -> None:
    """As the ones of warm-started models, whose words hold the space before them."""
    tokenizer = build_tokenizer(["Play.\n\nReach A. Seen: a door go\nSeen 1 : a hall"])
    prompts = builder(tokenizer, replace(TEMPLATE, later="Seen 1 : {{ observation }}"))
    first = prompts.build("A", (), "a door", (), 0)
    second = prompts.build("A", [None], "a hall", (), 1, answered(first, " go", tokenizer))  # type: ignore[list-item]
    added = second.token_ids[len(first.token_ids) + 1 :]
    assert tokenizer.convert_ids_to_tokens(added) == ["\n", "Seen", "\u25811", "\u2581:", "\u2581a", "\u2581hall"]


def test_a_policy_without_token_ids_gets_the_whole_conversation() -> None:
    prompts = builder()
    first = prompts.build("A", (), "a door", (), 0)
    talk = Exchange(first, Completion([], [], "stop", "go"), "go")
    assert [message["content"] for message in prompts.build("A", [None], "hall", (), 1, talk).messages] == [  # type: ignore[list-item]
        "Play.", "Reach A. Seen: a door", "go", "Seen 1: hall",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role != 'assistant' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages | reverse %}[{{ m.role }}]{{ m.content }}{% endfor %}",
        "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}[user]{{ messages[-1].content }}",
    ],
)
def test_a_chat_template_for_single_turns_is_refused(template: str) -> None:
    with pytest.raises(PromptTemplateError, match="the chat template"):
        builder(merging_tokenizer(template), replace(TEMPLATE, system=""))


def test_a_broken_later_part_is_named_at_once() -> None:
    with pytest.raises(PromptTemplateError, match="the later prompt template"):
        builder(template=replace(TEMPLATE, later="{{ history }}"))
    with pytest.raises(ValueError, match="give previous"):
        builder().build("A", [None], "a hall", (), 1)  # type: ignore[list-item]


class Line:
    """Rooms in a line, each with a long name; the tenth is the goal. Can be left and entered anywhere."""

    def __init__(self) -> None:
        self.room = 0

    async def reset(self, task: str, seed: int) -> Reset:
        self.room = 0
        return Reset("room 0 " * 4, "0", task="ten", admissible_actions=("go", "stay"))

    async def step(self, action: str) -> StepResult:
        self.room += 1
        return StepResult(
            f"room {self.room} " * 4, str(self.room), 0.5, self.room == 10, False, admissible_actions=("go",)
        )

    async def snapshot(self) -> object:
        return self.room

    async def restore(self, state: object) -> None:
        self.room = int(str(state))

    async def close(self) -> None: ...


class Walker:
    """Answers with the number of its turn, with or without the end of turn."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        turn = prompt.turns[-1].step
        if len(prompt.turns) > turn - prompt.history_dropped and END in prompt.text:
            assert self.tokenizer.decode(prompt.token_ids) == prompt.text
        ids = self.tokenizer.encode(f"<action>go {turn}</action>", add_special_tokens=False)
        ids += [self.tokenizer.eos_token_id] * (turn % 2)
        return Completion(ids, [-1.0] * len(ids), "stop")


def play(prompts: TranscriptBuilder, tokenizer: Any, place: Place | None = None) -> Episode:
    return asyncio.run(
        play_episode(
            EpisodeRequest("ten", "g", "t", 0, 0, place),
            Line(),
            Walker(tokenizer),
            prompts,
            sampling=SamplingParams(32),
            decode=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)),
            think=False,
            action_tags=True,
        )
    )


def goes_on(before: Step, after: Step) -> bool:
    known = before.prompt_ids + before.response_ids
    return after.prompt_ids[: len(known)] == known


@pytest.mark.parametrize("template", ["auto", "none"])
def test_an_episode_is_one_sequence_and_can_be_recorded_and_gone_on_with(tmp_path: Path, template: str) -> None:
    tokenizer = merging_tokenizer()
    prompts = builder(tokenizer, chat_template=template)
    episode = play(prompts, tokenizer)
    assert [step.sequence for step in episode.steps] == [0] * 10
    assert all(goes_on(*pair) for pair in pairwise(episode.steps))
    write_episodes(tmp_path / "e.jsonl.gz", [episode])
    assert read_episodes(tmp_path / "e.jsonl.gz") == [episode]
    assert set(sequence_numbers(StepTable.from_episodes([episode, replace(episode, trajectory="u")]).tokens)) == {0, 1}
    for index, place in asyncio.run(retrace(episode, [0, 4], Line())).items():
        assert play(prompts, tokenizer, place).steps == episode.steps[index:]


def test_at_the_limit_the_episode_ends() -> None:
    tokenizer = merging_tokenizer()
    episode = play(builder(tokenizer, max_prompt_tokens=600), tokenizer)
    assert (episode.end_reason, episode.steps[-1].truncated) == ("prompt_too_long", True)
    assert 3 < len(episode.steps) < 10
    assert all(len(step.prompt_ids) <= 600 for step in episode.steps)


def test_at_the_limit_the_oldest_turns_may_be_dropped() -> None:
    tokenizer = merging_tokenizer()
    episode = play(builder(tokenizer, max_prompt_tokens=400, overflow="drop"), tokenizer)
    assert episode.end_reason == "terminated"
    assert all(len(step.prompt_ids) <= 400 for step in episode.steps)
    sequences = [step.sequence for step in episode.steps]
    assert sequences == sorted(sequences)
    assert set(sequences) == {0, 1, 2}
    for before, after in pairwise(episode.steps):
        assert goes_on(before, after) is (before.sequence == after.sequence)
        if before.sequence != after.sequence:
            # What remains of the old tokens is unchanged, after the first kept turn in the words of a first one.
            text = tokenizer.decode(after.prompt_ids)
            room = after.history_dropped
            assert text.startswith(f"<|im_start|>system\nPlay.{END}\n<|im_start|>user\nReach ten. Seen: room {room} ")
            sampled = f"<action>go {before.index}</action>{END}\n"
            assert sampled in text
            assert f"<action>go {room - 1}</action>" not in text
            assert 0 < room < after.index
            assert len(after.prompt_ids) <= 200
    assert len(set(sequence_numbers(StepTable.from_episodes([episode]).tokens))) == 3
    with pytest.raises(PromptTooLong):
        builder(tokenizer, max_prompt_tokens=90, overflow="drop").build("ten", (), "room " * 20, (), 0)


def test_steps_that_do_not_go_on_from_each_other_are_refused() -> None:
    tokenizer = merging_tokenizer()
    episode = play(builder(tokenizer), tokenizer)
    episode.steps[3].prompt_ids = episode.steps[3].prompt_ids[1:]
    with pytest.raises(CreditError, match="step 3 of episode 't' does not go on"):
        StepTable.from_episodes([episode])


@pytest.mark.parametrize("template", [CHATML, STRIPPED])
def test_recorded_transcripts_are_read_as_messages(template: str) -> None:
    """Also under a template that leaves out earlier thoughts."""
    tokenizer = merging_tokenizer(template)
    prompts = builder(tokenizer)
    prompt = prompts.build("A", (), "door", (), 0)
    for index in range(1, 4):
        exchange = answered(prompt, f"<think>so</think><action>{index}</action>", tokenizer)
        prompt = prompts.build("A", [None], f"hall {index}", (), index, exchange)  # type: ignore[list-item]
    step = Step(
        3, "s", "t", "o", "a", 0.0, False, False, True, True, prompt.token_ids, [1], [0.0], "answer", sequence=0
    )
    assert PromptReader(tokenizer, chat_template="auto", think=False).messages(step) == prompt.messages
