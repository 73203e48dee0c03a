"""Steps that wait for something outside of their worker hold up no other episode of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent_envs import make
from agent_envs.workers import EnvFault, EnvPool, Session
from support.paths import SUPPORT

PLUGIN = str(SUPPORT / "waiting_env.py")


def with_pool(body: Callable[[EnvPool], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        async with EnvPool("waiting", plugins=[PLUGIN], **settings) as pool:
            return await asyncio.wait_for(body(pool), 60)

    return asyncio.run(run())


async def answer(session: Session, action: str) -> str:
    return (await session.step(action)).observation


def test_a_slow_step_does_not_stop_the_other_episodes_of_its_worker() -> None:
    async def body(pool: EnvPool) -> None:
        slow, other, fast = [await pool.open() for _ in range(3)]
        started = time.monotonic()
        waiting = [asyncio.ensure_future(answer(session, "wait 2")) for session in (slow, other)]
        for number in range(20):
            assert await answer(fast, f"go {number}") == f"go {number}"
            await fast.reset("a", number)
        assert not any(step.done() for step in waiting)
        assert await asyncio.gather(*waiting) == ["wait 2", "wait 2"]
        # Not one after the other.
        assert time.monotonic() - started < 3.9
        assert len(pool.pids) == 2
        assert await answer(slow, "go on") == "go on"

    with_pool(body)


def test_a_step_that_waits_too_long_loses_its_own_session_only() -> None:
    async def body(pool: EnvPool) -> None:
        slow, fast = await pool.open(), await pool.open()
        waiting = asyncio.ensure_future(answer(slow, "wait 50"))
        while not waiting.done():
            assert await answer(fast, "go") == "go"
        with pytest.raises(EnvFault, match=r"did not finish step within 0.5 s$"):
            await waiting
        with pytest.raises(EnvFault, match="did not finish step"):
            await slow.step("go")
        assert await answer(fast, "instances") == "1"
        assert (pool.stats()["timeouts"], pool.stats()["faults"], pool.stats()["restarts"]) == (1, 1, 0)

    with_pool(body, step_timeout=0.5)


def test_failures_of_steps_that_wait() -> None:
    async def body(pool: EnvPool) -> None:
        refused, cancelled, fast = [await pool.open() for _ in range(3)]
        with pytest.raises(EnvFault, match="failed in step: waiting: nobody answered") as caught:
            await refused.step("refuse")
        assert caught.value.refused
        step = asyncio.ensure_future(answer(cancelled, "wait 50"))
        await asyncio.sleep(0.1)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        await cancelled.close()
        assert await answer(fast, "instances") == "1"
        waiting = asyncio.ensure_future(answer(await pool.open(), "wait 50"))
        with pytest.raises(EnvFault, match="exited with status 5"):
            await fast.step("die")
        with pytest.raises(EnvFault, match="exited with status 5"):
            await waiting
        assert await answer(await pool.open(), "instances") == "1"

    with_pool(body)


def test_a_step_that_holds_the_worker_up_is_killed_with_those_that_wait() -> None:
    async def body(pool: EnvPool) -> None:
        waits, blocks, queued = [await pool.open() for _ in range(3)]
        waiting = asyncio.ensure_future(answer(waits, "wait 50"))
        blocking = asyncio.ensure_future(answer(blocks, "block"))
        await asyncio.sleep(0.2)
        faults = await asyncio.gather(waiting, blocking, queued.reset("a", 0), return_exceptions=True)
        assert all(isinstance(fault, EnvFault) for fault in faults)
        assert pool.stats()["restarts"] == 1

    with_pool(body, step_timeout=1.0, reset_timeout=2.0)


def test_closing_the_pool_does_not_wait() -> None:
    async def body(pool: EnvPool) -> asyncio.Future[str]:
        step = asyncio.ensure_future(answer(await pool.open(), "wait 50"))
        await asyncio.sleep(0.1)
        return step

    started = time.monotonic()

    async def run() -> None:
        async with EnvPool("waiting", plugins=[PLUGIN]) as pool:
            step = await body(pool)
        with pytest.raises(EnvFault, match="pool was closed"):
            await step

    asyncio.run(run())
    assert time.monotonic() - started < 20


def test_a_step_limit_holds_for_awaited_steps() -> None:
    from agent_envs import load_plugin

    load_plugin(PLUGIN)
    env = make("waiting", max_steps=2)
    assert env.waits
    env.reset("a", 0)
    assert not asyncio.run(env.astep("go")).truncated
    assert asyncio.run(env.astep("go")).truncated
    with pytest.raises(Exception, match="truncated after 2 steps"):
        asyncio.run(env.astep("go"))
