"""Environments on a node of a real Ray cluster that has no GPUs, until it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent_envs.workers import ServerLost
from openrlhf_gagpo.rollout.player import RolloutSettings
from support.pool_contract import CONTRACT, PROBE, answer

SETTINGS = RolloutSettings("probe", plugins=(PROBE,))


@pytest.fixture
def node(ray_runtime: dict[str, str]) -> Iterator[psutil.Process]:
    """A second node, without GPUs, in the cluster whose first has some."""
    import ray

    before = len(ray.nodes())
    program = [str(Path(sys.executable).with_name("ray")), "start", "--address", ray_runtime["address"]]
    started = subprocess.Popen(
        [*program, "--num-cpus", "1", "--num-gpus", "0", "--block", "--disable-usage-stats"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while len(ray.nodes()) == before:
            assert started.poll() is None
            assert time.monotonic() < deadline, "the node did not join in time"
            time.sleep(0.1)
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait(60)


async def place_of(session: Any) -> tuple[psutil.Process, list[int]]:
    """Return the host of a session, and the processes that it comes from."""
    worker = psutil.Process(int(await answer(session, "pid")))
    # The worker's own is the fork server, whose own is the host.
    above = worker.parents()
    return above[1], [process.pid for process in above]


def test_hosts_are_on_nodes_without_gpus_and_end_with_their_engine_or_node(node: psutil.Process) -> None:
    import ray

    from openrlhf_gagpo.backends.remote_envs.nodes import environment_nodes, ray_pool

    @ray.remote(num_cpus=0)
    class Engine:
        async def play(self) -> int:
            self.pool = ray_pool(SETTINGS)
            session = await self.pool.open()
            return int((await session.step("pid")).observation)

    async def body() -> None:
        # Text and errors, which Ray carries; what else a pool does is checked without it.
        names = ["any_text_passes", "an_exception_costs_one_session", "a_dead_fork_server_is_replaced"]
        checked = [CONTRACT[name] for name in names]
        pools = [ray_pool(SETTINGS) for _ in range(4)]
        try:
            await asyncio.gather(
                *(check.body(pool) for check, pool in zip(checked, pools, strict=False)), engine_dies()
            )
            await until_the_node_dies(pools[-1])
        finally:
            await asyncio.gather(*(pool.aclose() for pool in pools))

    async def engine_dies() -> None:
        engine = Engine.remote()
        worker = psutil.Process(await engine.play.remote())
        host = worker.parents()[1]
        assert "EnvHost" in host.cmdline()[0]
        ray.kill(engine)
        assert psutil.wait_procs([host, worker], timeout=30)[1] == []

    async def until_the_node_dies(pool: Any) -> None:
        first, second = [await pool.open() for _ in range(2)]
        host, above = await place_of(first)
        assert node.pid in above
        processes = [host, *host.children(recursive=True)]
        waiting = asyncio.ensure_future(second.step("hang"))
        await asyncio.sleep(0)
        os.kill(host.pid, signal.SIGKILL)
        for lost in (first.step("x"), waiting):
            with pytest.raises(ServerLost, match=r"^the environment host on node \S+ was lost: ActorDiedError: \S"):
                await lost
        assert psutil.wait_procs(processes, timeout=30)[1] == []

        third = await pool.open()
        assert node.pid in (await place_of(third))[1]
        node.terminate()
        node.wait(60)
        with pytest.raises(ServerLost, match=r"host on node .* was lost"):
            await third.step("x")
        # Now every node has GPUs.
        fourth = await pool.open()
        assert node.pid not in (await place_of(fourth))[1]
        assert (pool.stats()["faults"], pool.stats()["servers"]) == (3, 2)
        assert len(environment_nodes()) == 1

    assert len(environment_nodes()) == 1
    asyncio.run(asyncio.wait_for(body(), 300))
