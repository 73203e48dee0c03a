"""What every environment pool does, wherever its processes are: checks that take a pool of ``probe_env``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import pytest

from agent_envs import EnvError, UnknownTask
from agent_envs.survey import survey
from agent_envs.workers import EnvFault, ServerLost
from support.paths import SUPPORT

__all__ = ["CONTRACT", "PROBE", "Check", "answer"]

PROBE = str(SUPPORT / "probe_env.py")


class Check(NamedTuple):
    """One check of a pool with a single worker."""

    body: Callable[[Any], Awaitable[None]]
    limits: Mapping[str, float] = {}
    """Time limits that the pool has to have."""


async def answer(session: Any, action: str) -> str:
    """Return what the environment says to an action."""
    return (await session.step(action)).observation


async def instances_are_reused_and_exclusive(pool: Any) -> None:
    first, second = await pool.open(), await pool.open()
    assert await answer(first, "number") != await answer(second, "number")
    number = await answer(first, "number")
    await first.close()
    await first.close()
    with pytest.raises(EnvError, match="session is closed"):
        await first.step("x")
    third = await pool.open()
    assert await answer(third, "number") == number
    assert await answer(await pool.open(), "number") == "3"


async def any_text_passes(pool: Any) -> None:
    sessions = [await pool.open() for _ in range(3)]
    for text in ("", "\x00\x1b", "九\U0001f525", "\ud800", "x" * 5_000_000):
        assert await asyncio.gather(*(answer(session, text) for session in sessions)) == [text] * 3


async def an_unknown_task_leaves_the_session_usable(pool: Any) -> None:
    session = await pool.open()
    with pytest.raises(UnknownTask, match="no task 'z'"):
        await session.reset("z", 0)
    assert (await session.reset("b", 4)).observation == "b 4"
    assert pool.stats() == {"resets": 1, "steps": 0, "faults": 0, "timeouts": 0, "restarts": 0, "servers": 0}


async def an_exception_costs_one_session(pool: Any) -> None:
    reasons = {"raise": "KeyError: 'broken inside'", "sys.exit": "SystemExit: 3", "unpicklable": "lock"}
    for lost, (action, reason) in enumerate(reasons.items(), start=1):
        session, other = await pool.open(), await pool.open()
        number = await answer(session, "number")
        with pytest.raises(EnvFault, match=reason) as fault:
            await session.step(action)
        assert "Traceback" in fault.value.details
        assert not fault.value.refused
        with pytest.raises(EnvFault, match=reason) as again:
            await session.reset("a", 0)
        assert again.value.details == fault.value.details
        await session.close()
        assert await answer(other, "still here") == "still here"
        assert await answer(await pool.open(), "number") not in (number, await answer(other, "number"))
        counted = {name: count for name, count in pool.stats().items() if count and name != "steps"}
        assert counted == {"faults": lost}


async def a_dead_worker_is_replaced(pool: Any) -> None:
    session, other = await pool.open(), await pool.open()
    waiting = asyncio.ensure_future(other.step("x"))
    with pytest.raises(EnvFault, match="exited with status 5"):
        await session.step("die")
    with contextlib.suppress(EnvFault):
        await waiting
    with pytest.raises(EnvFault, match="exited with status 5"):
        await other.step("x")
    again = await pool.open()
    os.kill(int(await answer(again, "pid")), signal.SIGKILL)
    with pytest.raises(EnvFault, match="killed by signal 9"):
        await again.step("hang")
    assert await answer(await pool.open(), "x") == "x"
    stats = pool.stats()
    assert (stats["faults"], stats["restarts"], stats["timeouts"]) == (3, 2, 0)


async def a_hung_worker_is_killed_and_replaced(pool: Any) -> None:
    session, other = await pool.open(), await pool.open()
    pid = int(await answer(session, "pid"))
    stuck = asyncio.ensure_future(session.step("hang"))
    queued = asyncio.ensure_future(other.step("x"))
    with pytest.raises(EnvFault, match=r"did not finish step within 0\.5 s"):
        await stuck
    with pytest.raises(EnvFault, match="another session of the same worker process was stuck"):
        await queued
    assert await answer(await pool.open(), "pid") != str(pid)
    stats = pool.stats()
    assert (stats["faults"], stats["restarts"], stats["timeouts"]) == (2, 1, 1)


async def a_dead_fork_server_is_replaced(pool: Any) -> None:
    session, other = await pool.open(), await pool.open()
    server = int((await answer(session, "preloaded")).split()[0])
    waiting = asyncio.ensure_future(other.step("hang"))
    await asyncio.sleep(0)
    os.kill(server, signal.SIGKILL)
    with pytest.raises(ServerLost, match=r"^the fork server of environment 'probe' died, and its workers with it$"):
        await waiting
    for lost in (session, other):
        with pytest.raises(ServerLost, match="fork server"):
            await lost.step("x")
    again = await pool.open()
    assert int((await answer(again, "preloaded")).split()[0]) != server
    stats = pool.stats()
    assert (stats["faults"], stats["restarts"], stats["servers"], stats["timeouts"]) == (2, 1, 1, 0)


async def a_function_runs_in_a_worker(pool: Any) -> None:
    assert (await pool.inspect(survey, ["train", "dev"])).first == {"train": "a"}
    with pytest.raises(EnvFault, match="failed in inspection: TypeError"):
        await pool.inspect(survey)


CONTRACT = {
    check.body.__name__: check
    for check in (
        Check(instances_are_reused_and_exclusive),
        Check(any_text_passes),
        Check(an_unknown_task_leaves_the_session_usable),
        Check(an_exception_costs_one_session),
        Check(a_dead_worker_is_replaced),
        Check(a_hung_worker_is_killed_and_replaced, {"step_timeout": 0.5}),
        Check(a_dead_fork_server_is_replaced),
        Check(a_function_runs_in_a_worker),
    )
}
