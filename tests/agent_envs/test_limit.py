"""The step limit from outside, directly, by ``make`` and in worker processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import agent_envs
from agent_envs import EnvError, StepResult
from agent_envs.limit import ObservationLimit, StepLimit
from agent_envs.survey import survey
from agent_envs.testing import check_env
from agent_envs.vault import VaultEnv
from agent_envs.workers import EnvPool

PLUGIN = """
from agent_envs import register
from agent_envs.vault import VaultEnv

@register("unlimited-vault")
class Unlimited(VaultEnv):
    seen = []

    def __init__(self, size: int = 3):
        super().__init__(size=size)

    @classmethod
    def preload(cls, **options):
        cls.seen.append(options)

    def describe_tasks(self, tasks):
        yield str(self.seen)

@register("passing-vault")
class Passing(VaultEnv):
    def __init__(self, **options):
        super().__init__(**options)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "unlimited.py"
    path.write_text(PLUGIN)
    agent_envs.load_plugin(str(path))
    return str(path)


def idle(env: agent_envs.TextEnv, steps: int) -> list[StepResult]:
    env.reset("vault-train-0", 0)
    return [env.step("wait") for _ in range(steps)]


@pytest.mark.parametrize("limit", [1, 3, 14])
def test_episodes_end_at_the_limit(limit: int) -> None:
    env = StepLimit(VaultEnv(), limit)
    for _ in range(2):
        results = idle(env, limit)
        assert [result.truncated for result in results] == [False] * (limit - 1) + [True]
        with pytest.raises(EnvError):
            env.step("wait")


def test_a_limit_never_makes_episodes_longer() -> None:
    env = StepLimit(VaultEnv(max_steps=14), 30)
    assert env.max_steps == 14
    assert idle(env, 14)[-1].truncated
    with pytest.raises(EnvError, match="no episode is running"):
        env.step("wait")


def test_an_end_in_the_last_step_is_no_truncation() -> None:
    env = VaultEnv()
    env.reset("vault-train-0", 0)
    expert = env.expert()
    assert expert is not None
    steps = 1
    while not env.step(expert()).terminated:
        steps += 1
    for limit, outcome in ((steps, (True, False)), (steps - 1, (False, True))):
        limited = StepLimit(VaultEnv(), limit)
        limited.reset("vault-train-0", 0)
        expert = limited.expert()
        assert expert is not None
        results = [limited.step(expert()) for _ in range(limit)]
        assert (results[-1].terminated, results[-1].truncated) == outcome


class Noted(VaultEnv):
    """Tells whether it was closed; its instances have splits and notes of their own."""

    placeholders = ("<word>",)

    def __init__(self) -> None:
        super().__init__(max_steps=40)
        self.splits = ("train", "valid")
        self.record = {"rule": "own"}
        self.closed = False

    def describe_tasks(self, tasks):
        yield f"{len(tasks)} splits"

    def close(self) -> None:
        self.closed = True


def test_all_else_passes_through() -> None:
    inner = Noted()
    env = StepLimit(inner, 20)
    assert (env.name, env.splits, env.prompt) == (inner.name, inner.splits, inner.prompt)
    assert (env.record, env.placeholders) == (inner.record, inner.placeholders)
    assert env.tasks("valid") == inner.tasks("valid")
    assert list(env.describe_tasks({"a": []})) == ["1 splits"]
    env.close()
    assert inner.closed


def test_a_limited_environment_keeps_the_contract() -> None:
    check_env(lambda: StepLimit(VaultEnv(max_steps=14), 14), "train", sample=2)


@pytest.mark.parametrize("limit", [0, -1, True, "5", 2.0])
def test_a_limit_is_a_whole_number(limit: object) -> None:
    with pytest.raises(ValueError, match=r"max_steps is .*; it must be a whole number of at least 1"):
        StepLimit(VaultEnv(), limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "limit", "kind", "steps"),
    [
        ("vault", 20, VaultEnv, 20),
        ("unlimited-vault", 5, StepLimit, 5),
        ("unlimited-vault", 20, StepLimit, 14),
        ("passing-vault", 20, VaultEnv, 20),
        ("unlimited-vault", None, VaultEnv, 14),
    ],
)
def test_make_uses_the_option_where_there_is_one(
    plugin: str, name: str, limit: int | None, kind: type, steps: int
) -> None:
    env = agent_envs.make(name, max_steps=limit)
    assert isinstance(env, kind)
    assert env.max_steps == steps


@pytest.mark.parametrize(
    "make_pool",
    [
        lambda plugin: EnvPool("unlimited-vault", {"size": 4}, plugins=[plugin], max_steps=9),
        lambda plugin: EnvPool("unlimited-vault", {"max_steps": 9}, plugins=[plugin]),
        lambda plugin: EnvPool("vault", {"max_steps": 9, "train_tasks": 0, "valid_tasks": 0}, max_steps=9),
    ],
)
def test_workers_have_the_limit(plugin: str, make_pool: Callable[[str], EnvPool]) -> None:
    async def run() -> int:
        async with make_pool(plugin) as pool:
            return await (await pool.open()).max_steps()

    assert asyncio.run(run()) == 9


def test_preload_gets_what_the_class_takes(plugin: str) -> None:
    async def run() -> str:
        async with EnvPool("unlimited-vault", {"size": 4, "max_steps": 2}, plugins=[plugin]) as pool:
            return (await pool.inspect(survey, ["train"])).lines[0]

    assert asyncio.run(run()) == "[{'size': 4}]"


def test_two_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="got two step limits"):
        EnvPool("vault", {"max_steps": 3}, max_steps=4)


class Wordy(VaultEnv):
    """Says more than is needed, and knows how far an episode has come."""

    def final_score(self) -> float | None:
        return 0.25

    def task_payload(self, task: str) -> dict[str, str]:
        return {"about": task}


def test_long_observations_are_cut() -> None:
    env, whole = ObservationLimit(VaultEnv(), 10), VaultEnv()
    start, full = env.reset("vault-train-0", 0), whole.reset("vault-train-0", 0)
    missing = len(full.observation) - 10
    assert start.observation == f"{full.observation[:10]} ... ({missing} more characters)"
    assert start.state_key == full.state_key
    result, full_result = env.step("go north"), whole.step("go north")
    assert (result.observation[:10], result.state_key) == (full_result.observation[:10], full_result.state_key)
    assert "more characters" in result.observation
    assert env.model() is None
    long = ObservationLimit(VaultEnv(), len(full.observation))
    assert long.reset("vault-train-0", 0) == full


def test_make_limits_observations_of_any_environment(plugin: str) -> None:
    for name in ("vault", "unlimited-vault", "passing-vault"):
        env = agent_envs.make(name, max_observation=12, max_steps=14)
        assert env.reset("vault-train-0", 0).observation[12:].startswith(" ... (")
        assert env.max_steps == 14
    check_env(lambda: agent_envs.make("vault", max_observation=12), "train", sample=1)
    with pytest.raises(ValueError, match="max_observation is 0; it must be a whole number of at least 1"):
        agent_envs.make("vault", max_observation=0)

    @agent_envs.register("brief-vault")
    class Brief(VaultEnv):
        def __init__(self, max_observation: int = 5) -> None:
            super().__init__()
            self.most = max_observation

    own = agent_envs.make("brief-vault", max_observation=7)
    assert isinstance(own, Brief)
    assert own.most == 7


def test_workers_limit_observations() -> None:
    async def first() -> str:
        async with EnvPool("vault", {"max_observation": 10}) as pool:
            session = await pool.open()
            return (await session.reset("vault-train-0", 0)).observation

    assert "more characters" in asyncio.run(first())


def test_an_episode_that_is_cut_off_has_its_final_score() -> None:
    wordy = StepLimit(ObservationLimit(Wordy(), 10), 2)
    wordy.reset("vault-train-0", 0)
    assert wordy.step("wait").score == 0.0
    last = wordy.step("wait")
    assert (last.truncated, last.score) == (True, 0.25)
    assert wordy.task_payload("vault-train-0") == {"about": "vault-train-0"}
    assert idle(StepLimit(VaultEnv(), 2), 2)[-1].score == 0.0
