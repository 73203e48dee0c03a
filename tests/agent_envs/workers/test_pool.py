from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent_envs import EnvError, NumberedTasks, TextEnv, UnknownTask
from agent_envs.survey import survey
from agent_envs.workers import RESET_TIMEOUT_S, STEP_TIMEOUT_S, EnvFault, EnvPool, ServerLost, launcher, pool
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.rollout.player import RolloutSettings
from support.inspections import hang
from support.pool_contract import CONTRACT, PROBE, answer


def probe_pool(size: int = 1, **arguments: Any) -> EnvPool:
    return EnvPool("probe", size=size, plugins=[PROBE], **arguments)


def with_pool(body: Callable[[EnvPool], Awaitable[Any]], env_pool: EnvPool) -> Any:
    async def run() -> Any:
        async with env_pool:
            return await asyncio.wait_for(body(env_pool), 60)

    return asyncio.run(run())


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def all_gone(pids: list[int], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_vault_episodes_interleave_over_workers() -> None:
    async def play(env_pool: EnvPool, task: str) -> bool:
        session = await env_pool.open()
        await session.reset(task, 0)
        while not (result := await session.step(await session.expert_action())).terminated:
            pass
        await session.close()
        return result.success

    async def body(env_pool: EnvPool) -> None:
        tasks = await env_pool.tasks("train")
        assert all(await asyncio.gather(*(play(env_pool, task) for task in tasks[:40])))
        assert all(await asyncio.gather(*(play(env_pool, task) for task in tasks[40:80])))
        assert len(env_pool.pids) == 3
        stats = env_pool.stats()
        assert stats["resets"] == 80
        assert stats["steps"] > 80 * 5
        assert (stats["faults"], stats["timeouts"], stats["restarts"]) == (0, 0, 0)

    with_pool(body, EnvPool("vault", {"train_tasks": 80}, size=2))


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contract(name: str) -> None:
    check = CONTRACT[name]
    with_pool(check.body, probe_pool(**check.limits))


def test_workers_are_clean_processes() -> None:
    async def body(env_pool: EnvPool) -> None:
        session = await env_pool.open()
        modules = set((await answer(session, "modules")).split())
        assert not modules & {"torch", "ray", "vllm", "transformers", "openrlhf", "openrlhf_gagpo", "numpy", "pytest"}
        assert await answer(session, "main") == ""
        loaded_in, parent = (await answer(session, "preloaded")).split()
        assert loaded_in == parent == str(env_pool.pids[0])

    with_pool(body, probe_pool())


def test_a_cancelled_call_does_not_leave_its_instance_to_others() -> None:
    async def body(env_pool: EnvPool) -> None:
        session = await env_pool.open()
        step = asyncio.ensure_future(session.step("x"))
        await asyncio.sleep(0)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        await session.close()
        assert await answer(await env_pool.open(), "number") == "2"

    with_pool(body, probe_pool())


def test_unknown_tasks_and_missing_expert_leave_the_session_usable() -> None:
    async def body(env_pool: EnvPool) -> None:
        session = await env_pool.open()
        with pytest.raises(UnknownTask, match="no task 'z'"):
            await session.reset("z", 0)
        with pytest.raises(UnknownTask, match="no split 'dev'"):
            await env_pool.tasks("dev")
        with pytest.raises(EnvError, match="has no expert"):
            await session.expert_action()
        assert (await session.reset("b", 4)).observation == "b 4"
        assert await env_pool.tasks("train") == ("a", "b")
        assert env_pool.stats()["faults"] == 0

    with_pool(body, probe_pool())


def test_a_busy_event_loop_is_no_timeout() -> None:
    async def body(env_pool: EnvPool) -> None:
        session = await env_pool.open()
        step = asyncio.ensure_future(session.step("x"))
        # The request leaves in this turn of the loop; then the loop is kept from reading the reply.
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(time.sleep, 0.6)
        assert (await step).observation == "x"

    with_pool(body, probe_pool(step_timeout=0.2))


def test_a_dead_fork_server_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async def body(env_pool: EnvPool) -> None:
        session = await env_pool.open()
        pids = env_pool.pids
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(ServerLost, match="fork server"):
            await session.step("hang")
        assert all_gone(pids)
        assert await answer(await env_pool.open(), "x") == "x"
        (record,) = caplog.records
        assert record.getMessage().endswith("died, and its workers with it; another one is started when it is needed")

    with_pool(body, probe_pool(size=2))


def test_a_death_that_is_met_by_an_open_is_one_too() -> None:
    async def body(env_pool: EnvPool) -> None:
        session = await env_pool.open()
        pids = env_pool.pids
        os.kill(pids[0], signal.SIGKILL)
        assert all_gone(pids)
        # The event loop has not read of it yet.
        with pytest.raises(ServerLost, match="the fork server died"):
            await env_pool.open()
        with pytest.raises(ServerLost, match="died, and its workers with it"):
            await session.step("x")
        assert await answer(await env_pool.open(), "x") == "x"
        assert env_pool.stats()["servers"] == 1

    with_pool(body, probe_pool(size=2))


def test_a_fork_server_that_dies_while_it_loads_is_replaced() -> None:
    async def run() -> None:
        env_pool = probe_pool(size=2)
        try:
            opening = [asyncio.ensure_future(env_pool.open()) for _ in range(3)]
            while not env_pool.pids:
                await asyncio.sleep(0)
            os.kill(env_pool.pids[0], signal.SIGKILL)
            for lost in opening:
                with pytest.raises(ServerLost, match="process that loads the environments died"):
                    await lost
            assert await answer(await env_pool.open(), "x") == "x"
            stats = env_pool.stats()
            assert (stats["servers"], stats["restarts"], stats["faults"]) == (1, 0, 0)
        finally:
            await env_pool.aclose()

    asyncio.run(asyncio.wait_for(run(), 60))


async def stop_server_and_lose_a_worker(env_pool: EnvPool, full: bool = False) -> list[int]:
    """Return the pool's processes, of which the first has stopped and owes the end of the last.

    Args:
        full: whether the socket to the first takes nothing more.
    """
    session = await env_pool.open()
    while env_pool._launcher._owed:
        await asyncio.sleep(0.01)
    pids = env_pool.pids
    os.kill(pids[0], signal.SIGSTOP)
    if full:
        with contextlib.suppress(BlockingIOError):
            while True:
                env_pool._launcher._control.send(pickle.dumps(("kill", -1)))
    with pytest.raises(EnvFault, match=r"did not finish step within 0\.5 s") as stop:
        await session.step("hang")
    assert not isinstance(stop.value, ServerLost)
    return pids


def test_a_hung_fork_server_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(env_pool: EnvPool) -> None:
        other = await env_pool.open()
        with monkeypatch.context() as patch:
            patch.setattr(launcher, "ANSWER_S", 3.0)
            pids = await stop_server_and_lose_a_worker(env_pool)
            # Nobody starts the worker of this one.
            opening = asyncio.ensure_future(env_pool.open())
            assert await answer(other, "still here") == "still here"
            with pytest.raises(ServerLost, match=r"^the fork server of .* hung for 3 s and was killed, and its w"):
                await opening
            with pytest.raises(ServerLost, match="hung"):
                await other.step("x")
        assert all_gone(pids)
        assert await answer(await env_pool.open(), "x") == "x"
        stats = env_pool.stats()
        assert (stats["servers"], stats["restarts"], stats["timeouts"], stats["faults"]) == (1, 3, 1, 3)

    with_pool(body, probe_pool(size=2, step_timeout=0.5))


def test_a_fork_server_that_starts_no_worker_is_not_taken_for_a_slow_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(env_pool: EnvPool) -> None:
        monkeypatch.setattr(launcher, "ANSWER_S", 3.0)
        os.kill(env_pool.pids[0], signal.SIGSTOP)
        with pytest.raises(ServerLost, match="hung"):
            await env_pool.open()
        assert (env_pool.stats()["servers"], env_pool.stats()["timeouts"]) == (1, 0)
        assert env_pool.pids == []

    with_pool(body, probe_pool(reset_timeout=0.2))


def test_a_hung_fork_server_that_can_be_told_nothing_more_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(env_pool: EnvPool) -> None:
        other = await env_pool.open()
        monkeypatch.setattr(launcher, "ANSWER_S", 3.0)
        pids = await stop_server_and_lose_a_worker(env_pool, full=True)
        for lost in (env_pool.open(), other.step("x")):
            with pytest.raises(ServerLost, match="hung"):
                await lost
        assert all_gone(pids)

    with_pool(body, probe_pool(size=2, step_timeout=0.5))


def test_a_fork_server_that_reads_on_is_told_what_had_no_room() -> None:
    async def body(env_pool: EnvPool) -> None:
        pids = await stop_server_and_lose_a_worker(env_pool, full=True)
        opening = [asyncio.ensure_future(env_pool.open()) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert len(env_pool._launcher._unsent) == 3
        os.kill(pids[0], signal.SIGCONT)
        for session in [await each for each in opening]:
            assert await answer(session, "x") == "x"
        assert all_gone(pids[-1:])
        assert env_pool.pids[0] == pids[0]
        assert env_pool.stats()["servers"] == 0

    with_pool(body, probe_pool(size=2, step_timeout=0.5))


def test_a_worker_that_cannot_be_forked_is_one_less(tmp_path: Path) -> None:
    plugin, rich = tmp_path / "poor.py", tmp_path / "rich"
    plugin.write_text(f"""{Path(PROBE).read_text()}
import os
_fork = os.fork

def _poor():
    if not os.path.exists({str(rich)!r}):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return _fork()

os.fork = _poor
""")

    async def body(env_pool: EnvPool) -> None:
        with pytest.raises(EnvFault, match="exited with status 1") as stop:
            await env_pool.open()
        assert not isinstance(stop.value, ServerLost)
        rich.touch()
        assert await answer(await env_pool.open(), "x") == "x"
        assert env_pool.stats()["servers"] == 0

    with_pool(body, EnvPool("probe", plugins=[str(plugin)]))


def test_the_time_of_a_lost_fork_server_is_not_that_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "ANSWER_S", 3.0)

    async def body(env_pool: EnvPool) -> None:
        pids = await stop_server_and_lose_a_worker(env_pool)
        os.kill(pids[0], signal.SIGKILL)
        while env_pool.pids:
            await asyncio.sleep(0.01)
        session = await env_pool.open()
        server = env_pool.pids[0]
        await asyncio.sleep(launcher.ANSWER_S)
        assert await answer(session, "x") == "x"
        assert env_pool.pids[0] == server
        assert env_pool.stats()["servers"] == 1

    with_pool(body, probe_pool(step_timeout=0.5))


def test_a_pool_closes_while_its_fork_server_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CLOSE_GRACE_S", 0.2)
    env_pool = probe_pool(size=2, step_timeout=0.5)

    async def body(env_pool: EnvPool) -> list[int]:
        await env_pool.open()
        return await stop_server_and_lose_a_worker(env_pool)

    assert all_gone(with_pool(body, env_pool))
    assert env_pool.stats()["servers"] == 0


def test_a_busy_event_loop_is_no_hung_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(env_pool: EnvPool) -> None:
        monkeypatch.setattr(launcher, "ANSWER_S", 0.3)
        opening = asyncio.ensure_future(env_pool.open())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(time.sleep, 1.5)
        assert await answer(await opening, "x") == "x"
        assert env_pool.stats()["servers"] == 0

    with_pool(body, probe_pool())


@pytest.mark.parametrize(
    ("name", "options", "plugins", "message"),
    [
        ("volt", {}, [], "no environment 'volt'"),
        ("vault", {"sise": 3}, [], "no option 'sise'"),
        ("vault", {}, ["absent.py"], "no plugin file"),
        ("probe", {"preload_fails": True}, [PROBE], "^probe: the data folder is missing$"),
        ("probe", {"make_fails": True}, [PROBE], "probe: nothing works here"),
        ("vault", {"size": "x" * 100_000}, [], "pass large data as a path"),
    ],
)
def test_what_cannot_start_says_why(name: str, options: dict[str, Any], plugins: list[str], message: str) -> None:
    async def run() -> None:
        env_pool = EnvPool(name, options, plugins=plugins)
        try:
            for _ in range(2):
                with pytest.raises(EnvError, match=message) as stop:
                    await env_pool.open()
                assert not isinstance(stop.value, ServerLost)
            assert env_pool.stats()["servers"] == 0
        finally:
            await env_pool.aclose()

    asyncio.run(run())


def test_a_refused_constructor_costs_no_session() -> None:
    async def body(env_pool: EnvPool) -> None:
        for _ in range(5):
            with pytest.raises(UnknownTask, match="no such data"):
                await env_pool.open()
        (channel,) = env_pool._channels.values()
        assert (channel.sessions, channel.idle) == (set(), [])

    with_pool(body, probe_pool(options={"make_refuses": True}))


@pytest.mark.parametrize("method", ["make", "tasks", "reset", "step", "expert", "preload"])
def test_the_traceback_of_any_call_arrives(method: str) -> None:
    async def run() -> EnvFault:
        async with probe_pool(options={"breaks": method}) as env_pool:
            session = await env_pool.open()
            calls = {
                "tasks": lambda: env_pool.tasks("train"),
                "reset": lambda: session.reset("a", 0),
                "step": lambda: session.step("raise"),
                "expert": session.expert_action,
            }
            await calls[method]()
        raise AssertionError(f"{method} did not raise")

    with pytest.raises(EnvFault, match=r"^environment 'probe' failed .*: KeyError: 'broken inside'$") as fault:
        asyncio.run(run())
    assert fault.value.details.startswith("Traceback (most recent call last):")
    assert "probe_env.py" in fault.value.details
    assert fault.value.details.endswith("KeyError: 'broken inside'\n")
    assert not fault.value.refused


def test_what_an_environment_refuses_is_no_bug() -> None:
    for options in ({"make_fails": True}, {"preload_fails": True}):
        with pytest.raises(EnvFault) as fault:
            with_pool(EnvPool.open, probe_pool(options=options))
        assert fault.value.refused
        assert "EnvError" in fault.value.details


def test_tasks_stay_lazy_where_they_can() -> None:
    async def body(env_pool: EnvPool) -> None:
        assert await env_pool.tasks("lazy") == NumberedTasks("lazy-", 1_000_000)
        assert await env_pool.tasks("own") == ("c", "d")
        assert await env_pool.tasks("locked") == ("e", "f")
        assert await env_pool.tasks("train") == ("a", "b")
        assert env_pool.stats()["faults"] == 0

    with_pool(body, probe_pool())


def only_here(make: Callable[[], TextEnv]) -> None:
    raise AssertionError("called")


def test_a_function_runs_on_new_instances_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("module_of_this_process")
    module.only_here = only_here
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(only_here, "__module__", module.__name__)

    async def body(env_pool: EnvPool) -> None:
        assert (await env_pool.inspect(survey, ["train", "dev"])).first == {"train": "a"}
        with pytest.raises(EnvFault, match="failed in inspection: ModuleNotFoundError"):
            await env_pool.inspect(only_here)
        with pytest.raises(EnvFault, match=r"did not finish inspection within 0\.3 s"):
            await env_pool.inspect(hang, timeout=0.3)
        assert await answer(await env_pool.open(), "x") == "x"

    with_pool(body, probe_pool())


def test_splits_are_the_instances_own() -> None:
    async def body(env_pool: EnvPool) -> None:
        assert await (await env_pool.open()).splits() == ("train",)

    with_pool(body, probe_pool())


def test_a_slow_start_ends_in_one_sentence() -> None:
    with pytest.raises(EnvError, match=r"was not loaded within 0\.001 s; make its import and preload do less"):
        with_pool(EnvPool.start, probe_pool(start_timeout=0.001))


def test_the_default_timeouts_are_the_same_everywhere() -> None:
    flags = [all_flags()[f"env.{call}_timeout"].default for call in ("reset", "step")]
    settings = RolloutSettings("vault")
    assert flags == [RESET_TIMEOUT_S, STEP_TIMEOUT_S] == [settings.reset_timeout, settings.step_timeout]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EnvPool("vault", size=0)
    with pytest.raises(ValueError, match="above 0"):
        EnvPool("vault", step_timeout=0)


def test_closing_leaves_no_process() -> None:
    async def run() -> list[int]:
        env_pool = probe_pool(size=2)
        session, _ = await env_pool.open(), await env_pool.open()
        pids = env_pool.pids + [int(await answer(session, "pid"))]
        await env_pool.aclose()
        await env_pool.aclose()
        with pytest.raises(EnvFault, match="pool was"):
            await session.step("x")
        with pytest.raises(EnvError, match="pool is closed"):
            await env_pool.open()
        await session.close()
        return pids

    assert all_gone(asyncio.run(run()))


def test_closing_does_not_wait_for_a_hung_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CLOSE_GRACE_S", 0.2)
    pids: list[int] = []

    async def body(env_pool: EnvPool) -> None:
        await env_pool.open()
        pids.extend(env_pool.pids)

    with_pool(body, probe_pool(options={"hang_in_close": True}))
    assert all_gone(pids)


def test_works_in_a_loop_outside_the_main_thread() -> None:
    results: list[str] = []

    async def body(env_pool: EnvPool) -> None:
        results.append(await answer(await env_pool.open(), "from a thread"))

    thread = threading.Thread(target=with_pool, args=(body, probe_pool()))
    thread.start()
    thread.join(60)
    assert results == ["from a thread"]


def test_a_pool_belongs_to_one_loop() -> None:
    env_pool = probe_pool()

    async def use() -> None:
        await env_pool.start()

    async def use_and_close() -> None:
        with pytest.raises(EnvError, match="one per loop"):
            await env_pool.start()
        await env_pool.aclose()

    asyncio.run(use())
    pids = env_pool.pids
    asyncio.run(use_and_close())
    assert all_gone(pids)


OWNER = """
import asyncio, sys
from agent_envs.workers import EnvPool

# No guard for __main__: workers must not run this file again.
sys.stdout.write("started\\n")

async def main():
    pool = EnvPool("probe", size=2, plugins=[sys.argv[1]])
    first, second = await pool.open(), await pool.open()
    await first.step("print")
    stuck = asyncio.ensure_future(first.step(sys.argv[2]))
    await asyncio.sleep(0.1)
    sys.stdout.write(" ".join(map(str, pool.pids)) + "\\n")
    sys.stdout.flush()
    await asyncio.sleep(60)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    sys.exit(7)
"""


def start_owner(tmp_path: Path, action: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A program with a pool; returns it with the pool's process ids."""
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    owner = subprocess.Popen(
        [sys.executable, str(script), PROBE, action],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert owner.stdout.readline() == "started\n"
    return owner, [int(pid) for pid in owner.stdout.readline().split()]


@pytest.mark.parametrize("action", ["x", "hang"])
def test_no_process_outlives_a_killed_owner(tmp_path: Path, action: str) -> None:
    owner, pids = start_owner(tmp_path, action)
    with owner:
        assert len(pids) == 3
        assert all(alive(pid) for pid in pids)
        owner.kill()
        assert all_gone(pids)


def test_ctrl_c_is_quiet_in_the_workers(tmp_path: Path) -> None:
    owner, pids = start_owner(tmp_path, "interrupt")
    with owner:
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        assert all(alive(pid) for pid in pids)
        owner.send_signal(signal.SIGINT)
        _, errors = owner.communicate(timeout=30)
    assert all_gone(pids)
    assert owner.returncode == 7
    # What environments print goes to the error stream, so it cannot end up in a command's output.
    assert errors == "printed by an environment\n"
