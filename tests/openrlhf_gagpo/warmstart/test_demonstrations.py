"""Noisy-expert episodes and their training rows."""

from __future__ import annotations

from itertools import pairwise

import pytest

from openrlhf_gagpo.errors import PromptTooLong, WarmstartError
from openrlhf_gagpo.rollout.prompt import PromptBuilder
from openrlhf_gagpo.rollout.transcript import TranscriptBuilder
from openrlhf_gagpo.warmstart.clone import IGNORED, collate
from openrlhf_gagpo.warmstart.demonstrations import check_demonstrable, encode, play, texts
from openrlhf_gagpo.warmstart.tokenizer import build_tokenizer
from support.corridor import Corridor


class Silent(Corridor):
    name = "silent"

    def expert(self) -> None:
        return None


def _builder(tokenizer, **changes) -> PromptBuilder:
    options = {"history_length": 0, "list_actions": False, "max_prompt_tokens": 100} | changes
    return PromptBuilder(Corridor.prompt, tokenizer, think=False, action_tags=False, chat_template="none", **options)


def test_without_noise_the_expert_plays_every_task_in_turn() -> None:
    episodes = list(play(Corridor(), split="train", episodes=6, noise=0.0, seed=0))
    assert all(episode.success for episode in episodes)
    assert {turn.action for episode in episodes for turn in episode.turns} == {"go right"}
    assert sorted(len(episode.turns) for episode in episodes) == [2, 2, 3, 3, 4, 4]


def test_noise_is_executed_and_seeded() -> None:
    noisy = list(play(Corridor(), split="train", episodes=200, noise=0.5, seed=3))
    assert noisy == list(play(Corridor(), split="train", episodes=200, noise=0.5, seed=3))
    assert noisy != list(play(Corridor(), split="train", episodes=200, noise=0.5, seed=4))
    actions = [turn.action for episode in noisy for turn in episode.turns]
    # Half of the steps are random, and half of those go left.
    assert 0.2 < actions.count("go left") / len(actions) < 0.3
    for episode in noisy:
        places = [int(turn.observation.split()[1]) for turn in episode.turns]
        moves = [-1 if turn.action == "go right" else 1 for turn in episode.turns]
        assert places[1:] == [place + move for place, move in zip(places, moves, strict=True)][:-1]


def test_rows_are_the_rollouts_prompts_and_answers() -> None:
    episodes = list(play(Corridor(), split="train", episodes=20, noise=0.3, seed=0))
    options = {"history_length": 2, "list_actions": True}
    tokenizer = build_tokenizer(texts(episodes, _builder(build_tokenizer([]), **options)))
    rows = [row for (row,) in encode(episodes, _builder(tokenizer, **options), tokenizer)]
    turns = [(episode, turn) for episode in episodes for turn in episode.turns]
    assert len(rows) == len(turns)
    for row, (episode, turn) in zip(rows, turns, strict=True):
        history = " ".join(f"{h.step} {h.action} ;" for h in episode.turns[max(0, turn.step - 2) : turn.step])
        wanted = f"{history} {turn.observation} now [go left] [go right] :".strip()
        assert tokenizer.decode(row.prompt_ids) == wanted
        assert row.response_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row.response_ids[:-1]) == turn.action
        assert tokenizer.unk_token_id not in row.prompt_ids + row.response_ids


def test_a_transcript_is_one_sequence_with_all_actions() -> None:
    def builder(tokenizer) -> TranscriptBuilder:
        return TranscriptBuilder(
            Corridor.prompt, tokenizer, think=False, action_tags=False, chat_template="none", list_actions=False,
            max_prompt_tokens=100,
        )  # fmt: skip

    episodes = list(play(Corridor(), split="train", episodes=20, noise=0.3, seed=0))
    tokenizer = build_tokenizer(texts(episodes, builder(build_tokenizer([]))))
    sequences = encode(episodes, builder(tokenizer), tokenizer)
    assert [len(steps) for steps in sequences] == [len(episode.turns) for episode in episodes]
    for steps, episode in zip(sequences, episodes, strict=True):
        for before, step in pairwise(steps):
            read = before.prompt_ids + before.response_ids
            assert step.prompt_ids[: len(read)] == read
        assert tokenizer.unk_token_id not in steps[-1].prompt_ids
        labels = collate([steps], 0)["labels"][0]
        spoken = tokenizer.decode(labels[labels != IGNORED]).split(tokenizer.eos_token)
        assert [action.strip() for action in spoken] == [*(turn.action for turn in episode.turns), ""]


def test_all_admissible_actions_are_in_the_vocabulary() -> None:
    episodes = list(play(Corridor(), split="train", episodes=3, noise=0.0, seed=0))
    tokenizer = build_tokenizer(texts(episodes, _builder(build_tokenizer([]))))
    assert tokenizer.unk_token_id not in tokenizer.encode("go left")


def test_a_prompt_that_does_not_fit_is_reported() -> None:
    episodes = list(play(Corridor(), split="train", episodes=1, noise=0.0, seed=0))
    tokenizer = build_tokenizer([])
    with pytest.raises(PromptTooLong):
        encode(episodes, _builder(tokenizer, max_prompt_tokens=2), tokenizer)


def test_environments_that_cannot_demonstrate_are_refused() -> None:
    check_demonstrable(Corridor(), "train")
    with pytest.raises(WarmstartError, match=r"no tasks in its split 'test'"):
        check_demonstrable(Corridor(), "test")
    with pytest.raises(WarmstartError, match="no expert"):
        check_demonstrable(Silent(), "train")
