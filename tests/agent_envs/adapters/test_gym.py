"""Gymnasium environments as ours: tasks, chance, actions, limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
from gymnasium.wrappers import TimeLimit

import agent_envs
from agent_envs import EnvError, TextEnv, UnknownTask
from agent_envs.adapters import Moment, from_gymnasium
from agent_envs.testing import check_env
from support.slippery_corridor import Corridor


def corridor(make: Callable[[int], gymnasium.Env[Any, Any]] | None = None, **changes: Any) -> type[TextEnv]:
    words: dict[str, Any] = {
        "tasks": {"train": 6, "valid": 2},
        "actions": ("back", "Ahead"),
        "text": lambda at: f"place {at.observation}",
        "success": lambda at: at.terminated,
        "instruction": "Go to the door.",
        "max_steps": 12,
    }
    return agent_envs.register("corridor")(from_gymnasium(make or (lambda number: Corridor()), **(words | changes)))


def started(env: TextEnv, task: str = "train-0", seed: int = 0) -> list[str]:
    """Places of an episode that always goes ahead."""
    places = [env.reset(task, seed).observation]
    while True:
        result = env.step("ahead")
        places.append(result.observation)
        if result.terminated or result.truncated:
            return places


@pytest.mark.parametrize("slips", [0.0, 0.4])
@pytest.mark.parametrize("shared", [False, True])
def test_the_contract_is_kept(slips: float, shared: bool) -> None:
    make = corridor(lambda number: Corridor(slips=slips), shared=shared)
    for split in ("train", "valid"):
        check_env(make, split, sample=2)


def test_the_contract_is_kept_with_actions_that_are_read() -> None:
    words = {"go ahead": 1, "go back": 0}
    check_env(corridor(actions=words.get), "train", sample=2)


def test_an_episode_says_what_gymnasium_says() -> None:
    env = corridor()()
    start = env.reset("train-0", 0)
    assert (start.task, start.admissible_actions) == ("Go to the door.", ("back", "Ahead"))
    assert start.state_key == start.observation
    wrong = env.step("jump")
    assert (wrong.admissible, wrong.observation, wrong.reward) == (False, start.observation, 0.0)
    result = env.step(" AHEAD ")
    while not result.terminated:
        assert (result.success, result.score, result.reward) == (False, 0.0, 0.0)
        result = env.step("ahead")
    assert (result.observation, result.success, result.score, result.reward) == ("place 6", True, 1.0, 1.0)


def test_the_task_decides_the_start_and_the_seed_what_happens_after_it() -> None:
    env = corridor(lambda number: Corridor(slips=0.5))()
    starts = {env.reset(f"train-{n}", 0).observation for n in range(6)}
    assert len(starts) > 1
    episodes = [started(env, "train-1", seed) for seed in (0, 0, 1, 2, 3)]
    assert episodes[0] == episodes[1]
    assert len({tuple(places) for places in episodes}) > 2
    assert len({places[0] for places in episodes}) == 1


def test_no_two_tasks_share_their_number() -> None:
    made: list[int] = []

    def make(number: int) -> gymnasium.Env[Any, Any]:
        made.append(number)
        return Corridor()

    env = corridor(make)()
    for task in ("train-0", "train-5", "valid-0", "valid-1", "valid-1"):
        env.reset(task, 0)
    assert made == [0, 5, 6, 7]
    for task in ("train-6", "valid-07", "test-0"):
        with pytest.raises(UnknownTask, match="its ids look like 'train-0'"):
            env.reset(task, 0)
    with pytest.raises(UnknownTask, match="no split 'test'; it has: train, valid"):
        env.tasks("test")


def test_the_class_belongs_to_the_module_that_made_it() -> None:
    cls = from_gymnasium(
        lambda number: Corridor(), tasks={"train": 1}, actions=("a",), text=str, success=lambda at: at.terminated
    )
    assert (cls.__module__, cls.__qualname__) == (__name__, "Gymnasium")


def test_environments_are_closed() -> None:
    made: list[Corridor] = []

    def make(number: int) -> Corridor:
        made.append(Corridor())
        return made[-1]

    env = corridor(make)()
    env.reset("train-0", 0)
    env.reset("train-1", 0)
    assert [one.closed for one in made] == [True, False]
    env.close()
    assert [one.closed for one in made] == [True, True]


def test_only_possible_actions_are_listed_and_read() -> None:
    def possible(at: Moment) -> tuple[str, ...]:
        return ("back", "Ahead") if at.observation else ("Ahead",)

    make = corridor(tasks={"train": 20}, possible=possible, score=lambda at: at.observation / 6)
    check_env(make, "train", sample=2)
    env = make()
    task = next(task for task in env.tasks("train") if env.reset(task, 0).observation == "place 0")
    assert env.reset(task, 0).admissible_actions == ("Ahead",)
    assert not env.step("back").admissible
    assert env.step("ahead").score == 1 / 6
    assert env.step("back").admissible


def test_a_limit_of_gymnasium_below_ours_is_named() -> None:
    def make(number: int) -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CliffWalking-v1", max_episode_steps=5)

    env = corridor(make)()
    with pytest.raises(EnvError, match=r"after 5 steps, before max_steps = 12; set max_steps=5"):
        env.reset("train-0", 0)
    assert corridor_with_limit(make).reset("train-0", 0).observation == "place 36"


def corridor_with_limit(make: Callable[[int], gymnasium.Env[Any, Any]]) -> TextEnv:
    cls = from_gymnasium(
        make,
        tasks={"train": 1},
        actions=("up", "right"),
        text=lambda at: f"place {at.observation}",
        success=lambda at: at.terminated,
    )
    cls.name = "cliff"
    return cls(max_steps=5)  # type: ignore[call-arg]


def test_an_end_that_gymnasium_calls_truncated_stays_one() -> None:
    env = corridor(lambda number: TimeLimit(Corridor(), max_episode_steps=2))()
    env.reset("train-0", 0)
    env.step("back")
    assert env.step("back").truncated
    with pytest.raises(EnvError, match="no episode is running"):
        env.step("back")


def test_an_environment_that_raises_ends_its_episode() -> None:
    class Broken(Corridor):
        def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
            raise RuntimeError("stuck")

    env = corridor(lambda number: Broken())()
    env.reset("train-0", 0)
    with pytest.raises(RuntimeError, match="stuck"):
        env.step("ahead")
    with pytest.raises(EnvError, match="no episode is running"):
        env.step("ahead")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {}}, "give a number for each split"),
        ({"tasks": {"train": -1}}, "give a number for each split"),
        ({"actions": ()}, "give each a name of its own"),
        ({"actions": ("up", "Up ")}, "give each a name of its own"),
    ],
)
def test_words_without_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        corridor(**changes)


def test_a_step_limit_without_sense_is_refused() -> None:
    corridor()
    with pytest.raises(ValueError, match="max_steps is 0"):
        agent_envs.make("corridor", max_steps=0)
