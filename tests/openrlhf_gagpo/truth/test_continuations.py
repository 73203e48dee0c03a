"""Estimates from continuations against known values: those of a policy that ends its task with some chance a turn."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from agent_envs import TextEnv, registry
from agent_envs.alfworld.generator import generate as generate_games
from agent_envs.webshop.generator import generate as generate_shop
from openrlhf_gagpo.errors import ConfigError, RunError
from openrlhf_gagpo.rollout.player import EpisodePlayer, RolloutSettings
from openrlhf_gagpo.rollout.types import Completion, Episode, EpisodeRequest, Prompt, SamplingParams
from openrlhf_gagpo.truth.continuations import Budget, Outcome, draw, play_on
from openrlhf_gagpo.truth.played import Played
from support.characters import Characters

_CHANCE, _LIMIT, _GAMMA = 0.2, 12, 0.9
_SAMPLING = SamplingParams(max_new_tokens=8)


class Answers:
    """Says what a function of the turn's seed returns."""

    def __init__(self, answer: Callable[[int | None], str]) -> None:
        self.answer = answer

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        return Completion([], [], "stop", self.answer(params.seed))


def player_of(name: str, options: dict[str, Any]) -> EpisodePlayer:
    settings = RolloutSettings(name, options, think=False, action_tags=False, max_prompt_tokens=10**6)
    return EpisodePlayer(settings, Characters())


def planned(env: TextEnv, task: str) -> list[str]:
    env.reset(task, 0)
    expert, actions = env.expert(), []
    assert expert is not None
    while True:
        actions.append(expert())
        result = env.step(actions[-1])
        if result.terminated or result.truncated:
            assert result.success
            return actions


async def record(player: EpisodePlayer, task: str, actions: list[str]) -> Episode:
    script = iter(actions)
    request = EpisodeRequest(task, "group", "episode", env_seed=0)
    (episode,) = await player.play([request], Answers(lambda seed: next(script)), _SAMPLING)
    return episode


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    games, shop = tmp_path_factory.mktemp("games"), tmp_path_factory.mktemp("shop")
    generate_games(games, "train", count=1, seed=0)
    generate_shop(shop, products=60, seed=0)
    return {
        "alfworld": {"data_dir": str(games)},
        "webshop": {"data_dir": str(shop), "cache_dir": str(shop / "cache"), "nouns": "words", "test_goals": 10},
        "vault": {"size": 2, "keys": 1, "train_tasks": 1, "valid_tasks": 0, "test_tasks": 0},
    }


@pytest.mark.parametrize("name", ["alfworld", "webshop", "vault"])
def test_values_of_a_policy_that_only_knows_the_last_action(name: str, worlds: dict[str, dict[str, Any]]) -> None:
    options = {**worlds[name], "max_steps": _LIMIT}
    env = registry.make(name, **options)
    task = env.tasks("train")[0]
    actions = planned(env, task)
    env.close()

    async def found() -> tuple[Episode, list[Outcome]]:
        player = player_of(name, options)
        try:
            assert await player.can_retrace()
            episode = await record(player, task, actions)
            policy = Answers(lambda seed: actions[-1] if random.Random(seed).random() < _CHANCE else "stand still")
            played = Played(1, [episode] * len(actions), episode.steps)
            last = np.array([len(actions) - 2, len(actions) - 1])

            async def play(requests: list[EpisodeRequest]) -> list[Episode]:
                return await player.play(requests, policy, _SAMPLING)

            return episode, await play_on(player, play, played, last, Budget(2, 200, seed=0))
        finally:
            await player.aclose()

    episode, (early, late) = asyncio.run(found())
    pay = episode.steps[-1].reward
    left = _LIMIT - len(actions) + 1
    chances = [_CHANCE * (1 - _CHANCE) ** turn for turn in range(left)]
    for gamma in (1.0, _GAMMA):
        value = pay * sum(chance * gamma**turn for turn, chance in enumerate(chances))
        here = late.state_value(gamma)
        assert 0 < here.error < 0.05 * pay
        assert abs(here.value - value) < 3 * here.error
        assert late.action_value(gamma).value == pay
        assert late.advantage(gamma).value == pytest.approx(pay - here.value)
        assert late.advantage(gamma).error == pytest.approx(here.error)
        # Before the last but one action, the only one that it knows is of no use.
        assert early.state_value(gamma).value == 0
        following = early.action_value(gamma)
        assert abs(following.value - gamma * value) < 3 * following.error
    assert early.after != late.before  # Other seeds, so that Q and V of neighbours are independent.


def vault_episode(limit: int, options: dict[str, Any]) -> tuple[EpisodePlayer, str, list[str]]:
    env = registry.make("vault", max_steps=limit, **options)
    task = env.tasks("train")[0]
    return player_of("vault", {**options, "max_steps": limit}), task, planned(env, task)


def refused(worlds: dict[str, dict[str, Any]], change: Callable[[Episode], None], answer: str = "stand still") -> None:
    """Play on from a changed record."""

    async def play() -> None:
        player, task, actions = vault_episode(_LIMIT, worlds["vault"])

        async def answers(requests: list[EpisodeRequest]) -> list[Episode]:
            return await player.play(requests, Answers(lambda seed: answer), _SAMPLING)

        try:
            episode = await record(player, task, actions)
            change(episode)
            played = Played(1, [episode] * len(actions), episode.steps)
            await play_on(player, answers, played, np.array([2]), Budget(1, 2, seed=0))
        finally:
            await player.aclose()

    asyncio.run(play())


def test_what_was_recorded_must_happen_again(worlds: dict[str, dict[str, Any]]) -> None:
    def pay(episode: Episode) -> None:
        episode.steps[1].reward = 0.5

    with pytest.raises(RunError, match="step 1 of episode does not happen again as it was recorded"):
        refused(worlds, pay)


def test_the_policy_must_see_what_it_saw(worlds: dict[str, dict[str, Any]]) -> None:
    def reword(episode: Episode) -> None:
        episode.steps[2].prompt_ids = [1, 2, 3]

    with pytest.raises(ConfigError, match="the prompt of step 2 of episode is not the recorded one"):
        refused(worlds, reword)


def test_the_mean_of_discounted_returns_with_its_error() -> None:
    outcome = Outcome(reward=0.5, before=[[1.0], [0.0, 2.0]], after=[[1.0, 1.0], [0.0]])
    here, taken, better = outcome.state_value(0.5), outcome.action_value(0.5), outcome.advantage(0.5)
    assert (here.value, here.error) == (1.0, 0.0)
    assert taken.value == 0.5 + 0.5 * 0.75
    assert taken.error == pytest.approx(0.5 * math.sqrt(2 * 0.75**2) / math.sqrt(2))
    assert (better.value, better.error) == (taken.value - 1, taken.error)
    assert Outcome(0.5, [[0.0], [1.0]], []).action_value(1.0).error == 0


def test_steps_are_drawn_from_everywhere() -> None:
    steps = np.arange(100, 200)
    drawn = draw(steps, 10, seed=1)
    assert [int(step - 100) // 10 for step in drawn] == list(range(10))
    assert drawn.tolist() == draw(steps, 10, seed=1).tolist() != draw(steps, 10, seed=2).tolist()
    assert draw(steps[:3], 10, seed=0).tolist() == [100, 101, 102]
