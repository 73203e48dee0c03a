"""Episodes that begin in the middle of another one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest

from agent_envs import EnvError, PromptTemplate
from agent_envs.base import Reset, StepResult
from agent_envs.vault import VaultEnv
from openrlhf_gagpo.errors import RolloutError
from openrlhf_gagpo.rollout.episode import play_episode
from openrlhf_gagpo.rollout.prompt import PromptBuilder
from openrlhf_gagpo.rollout.retrace import retrace
from openrlhf_gagpo.rollout.types import Completion, Episode, EpisodeRequest, Place, Prompt, SamplingParams

_TEMPLATE = PromptTemplate(
    turn="{{ step }}:{% for item in history %}{{ item.step }}{{ item.observation }}>{{ item.action }};{% endfor %}"
    "{{ observation }} {{ admissible_actions | join(',') }}"
)
_REQUEST = EpisodeRequest("vault-train-0", "g", "t", env_seed=0, sampling_seed=3)


class Characters:
    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]


class Wanderer:
    """Takes any listed action, or none."""

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        text = random.Random(params.seed).choice([*prompt.text.rpartition(" : ")[2].split(","), "nothing"])
        return Completion([ord(c) for c in text.strip()], [-1.0] * len(text.strip()), "stop")


class Here:
    """A vault in this process, as a session."""

    def __init__(self) -> None:
        self.env = VaultEnv(size=2, keys=1, max_steps=9, train_tasks=1, valid_tasks=0, test_tasks=0)
        self.resets = 0

    async def reset(self, task: str, seed: int) -> Reset:
        self.resets += 1
        return self.env.reset(task, seed)

    async def restore(self, state: object) -> None:
        self.env.restore(state)

    async def snapshot(self) -> object:
        return self.env.snapshot()

    async def step(self, action: str) -> StepResult:
        return self.env.step(action)

    async def close(self) -> None:
        pass


def play(session: Here, place: Place | None = None) -> Episode:
    def decode(ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    prompts = PromptBuilder(
        _TEMPLATE,
        Characters(),
        history_length=2,
        think=False,
        action_tags=False,
        list_actions=True,
        max_prompt_tokens=10**4,
    )
    return asyncio.run(
        play_episode(
            replace(_REQUEST, place=place),
            session,
            Wanderer(),
            prompts,
            sampling=SamplingParams(8),
            decode=decode,
            think=False,
            action_tags=False,
        )
    )


def places(episode: Episode, wanted: Collection[int]) -> dict[int, Place]:
    return asyncio.run(retrace(episode, wanted, Here()))


def test_an_episode_from_a_place_is_the_rest_of_one_from_the_start() -> None:
    whole = play(Here())
    assert len(whole.steps) == 9
    for index, place in places(whole, range(9)).items():
        session = Here()
        rest = play(session, place)
        assert session.resets == 0
        assert rest.steps == whole.steps[index:]
        assert (rest.end_reason, rest.success, rest.extra) == (whole.end_reason, whole.success, whole.extra)


def test_only_wanted_places_before_the_end_are_returned() -> None:
    whole = play(Here())
    assert list(places(whole, {0, 4, 9})) == [0, 4]
    assert places(whole, ()) == {}
    # Its prompts ended this episode; the environment would have gone on.
    whole.steps = whole.steps[:5]
    whole.steps[-1].truncated = True
    assert list(places(whole, {5})) == [5]


@pytest.mark.parametrize(("name", "value"), [("observation", "else"), ("next_state_key", "else"), ("reward", 2.0)])
def test_an_environment_that_changed_is_noticed(name: str, value: object) -> None:
    whole = play(Here())
    setattr(whole.steps[3], name, value)
    assert list(places(whole, {3})) == [3]
    with pytest.raises(RolloutError, match="step 3 of t does not happen again"):
        places(whole, {4})


def test_a_state_that_cannot_be_restored_is_a_fault_of_the_episode() -> None:
    (place,) = places(play(Here()), {2}).values()
    episode = play(Here(), replace(place, state="elsewhere"))
    assert (episode.end_reason, episode.steps) == ("env_fault", [])
    assert "not a snapshot" in episode.error
    with pytest.raises(EnvError):
        asyncio.run(Here().restore(None))
