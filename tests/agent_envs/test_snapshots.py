"""Snapshots travel between worker processes, and under a step limit; the contract suite checks the rest."""

from __future__ import annotations

import asyncio

import pytest

from agent_envs import EnvError, TextEnv
from agent_envs.limit import StepLimit
from agent_envs.vault import VaultEnv
from agent_envs.workers import EnvPool

_OPTIONS = {"size": 2, "keys": 1, "train_tasks": 2, "valid_tasks": 0, "test_tasks": 0}
_ACTIONS = ("go south", "go north", "go east", "nonsense", "go west")


def test_a_state_goes_on_in_another_process() -> None:
    async def play() -> None:
        async with EnvPool("vault", _OPTIONS, 2) as pool:
            first, second = await pool.open(), await pool.open()
            await first.reset("vault-train-0", 0)
            await first.step(_ACTIONS[0])
            state = await first.snapshot()
            await second.restore(state)
            for action in _ACTIONS[1:]:
                assert await first.step(action) == await second.step(action)

    asyncio.run(play())


def test_a_step_limit_is_part_of_the_state() -> None:
    first, second = (StepLimit(VaultEnv(**_OPTIONS), 3) for _ in range(2))
    first.reset("vault-train-0", 0)
    first.step(_ACTIONS[0])
    second.restore(first.snapshot())
    assert [first.step(action) for action in _ACTIONS[1:3]] == [second.step(action) for action in _ACTIONS[1:3]]
    with pytest.raises(EnvError):
        first.snapshot()


def test_an_environment_without_snapshots_says_so() -> None:
    class Plain(VaultEnv):
        can_snapshot = False
        snapshot = TextEnv.snapshot
        restore = TextEnv.restore

    with pytest.raises(EnvError, match="takes no snapshots"):
        Plain(**_OPTIONS).snapshot()
    with pytest.raises(EnvError, match="restores no snapshots"):
        Plain(**_OPTIONS).restore(None)
