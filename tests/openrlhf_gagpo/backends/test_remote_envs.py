"""The pool of environments on other nodes, with hosts in this process in place of Ray's."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from agent_envs import EnvError, UnknownTask
from agent_envs.workers import EnvFault, ServerLost
from agent_envs.workers import pool as workers
from openrlhf_gagpo.backends.remote_envs import pool as remote
from openrlhf_gagpo.backends.remote_envs.host import EnvHost
from openrlhf_gagpo.backends.remote_envs.pool import Node, RemotePool
from openrlhf_gagpo.rollout.player import EpisodePlayer, RolloutSettings
from openrlhf_gagpo.rollout.types import Completion, EpisodeRequest, Prompt, SamplingParams
from support.characters import Characters
from support.pool_contract import CONTRACT, PROBE, answer

NODES = [Node("1", "blue"), Node("2", "green")]


class Nearby:
    """A link to a host in this process, which can die, fall silent or never start."""

    def __init__(self, settings: RolloutSettings, node: Node) -> None:
        self.host = EnvHost(settings)
        self.node = node
        self.silent = False
        self.gone = asyncio.Event()
        self.asked: list[str] = []

    async def ask(self, method: str, *arguments: Any) -> bytes:
        self.asked.append(method)
        if self.silent:
            await asyncio.Event().wait()
        work = asyncio.ensure_future(getattr(self.host, method)(*arguments))
        gone = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if self.gone.is_set():
                raise ConnectionError("the node has no power")
            return work.result()
        finally:
            gone.cancel()

    def kill(self) -> None:
        self.gone.set()


class Cluster:
    """Nodes, the links that a pool makes to them, and the pool."""

    def __init__(self, nodes: list[Node], **settings: Any) -> None:
        self.nodes = nodes
        self.links: list[Nearby] = []
        self.down: set[Node] = set()
        self._settings = RolloutSettings("probe", plugins=(PROBE,), **settings)
        self.pool = RemotePool(lambda: self.nodes, self._connect)

    def _connect(self, node: Node) -> Nearby:
        link = Nearby(self._settings, node)
        if node in self.down:
            link.kill()
        self.links.append(link)
        return link

    async def aclose(self) -> None:
        await self.pool.aclose()
        for link in self.links:
            await link.host.aclose()


def with_cluster(body: Callable[[Cluster], Awaitable[None]], *nodes: Node, **settings: Any) -> None:
    async def run() -> None:
        cluster = Cluster(list(nodes), **settings)
        try:
            await asyncio.wait_for(body(cluster), 60)
        finally:
            await cluster.aclose()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that hang do not hold up the end of a test."""
    monkeypatch.setattr(workers, "CLOSE_GRACE_S", 0.5)


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contract_of_pools(name: str) -> None:
    check = CONTRACT[name]
    with_cluster(lambda cluster: check.body(cluster.pool), NODES[0], **check.limits)


class Wanderer:
    """Says one of a few words, by the turn's seed."""

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        words = ["go north", "go east", "look", "pick up"]
        return Completion([], [], "stop", words[(params.seed or 0) % len(words)])


def test_episodes_are_those_of_local_workers() -> None:
    """From their beginning, and from a place within another one, whose state comes from another node."""
    settings = RolloutSettings("vault", {"max_steps": 15}, think=False, action_tags=False, max_prompt_tokens=10**6)

    async def played(pool: RemotePool | None) -> list[Any]:
        player = EpisodePlayer(settings, Characters(), pool)
        try:
            assert await player.can_retrace()
            requests = [EpisodeRequest(f"vault-train-{n}", "g", f"{n}", 0, sampling_seed=n) for n in range(4)]
            whole = await player.play(requests, Wanderer(), SamplingParams(8))
            place = (await player.retrace(whole[0], {2}))[2]
            requests = [replace(requests[0], trajectory=f"from {n}", place=place) for n in range(2)]
            parts = await player.play(requests, Wanderer(), SamplingParams(8))
            assert player.stats()["env/resets"] == 5
        finally:
            await player.aclose()
        return [replace(episode, generation_s=0.0, environment_s=0.0) for episode in whole + parts]

    async def run() -> None:
        there = await played(RemotePool(lambda: NODES, lambda node: Nearby(settings, node)))
        assert there == await played(None)
        assert [len(episode.steps) for episode in there] == [15, 15, 15, 15, 13, 13]

    asyncio.run(run())


@pytest.mark.parametrize("whole_host", [False, True])
def test_episodes_of_a_lost_server_or_host_are_played_again(whole_host: bool) -> None:
    settings = RolloutSettings("vault", {"max_steps": 15}, think=False, action_tags=False, max_prompt_tokens=10**6)
    links: list[Nearby] = []

    class Breaking(Wanderer):
        asked = 0

        async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
            self.asked += 1
            if self.asked == 20:
                if whole_host:
                    links[0].kill()
                else:
                    os.kill(links[0].host._pool.pids[0], signal.SIGKILL)
            return await super().generate(prompt, params)

    def connect(node: Node) -> Nearby:
        links.append(Nearby(settings, node))
        return links[-1]

    async def run() -> None:
        player = EpisodePlayer(settings, Characters(), RemotePool(lambda: NODES[:1], connect))
        requests = [EpisodeRequest(f"vault-train-{n}", "g", f"{n}", 0, sampling_seed=n) for n in range(4)]
        try:
            episodes = await player.play(requests, Breaking(), SamplingParams(8))
            stats = player.stats()
        finally:
            await player.aclose()
            for link in links:
                await link.host.aclose()
        assert [len(episode.steps) for episode in episodes] == [15] * 4
        assert (stats["env/servers"], stats["env/faults"]) == (1, 4)
        assert len(links) == 1 + whole_host

    asyncio.run(run())


def test_sessions_go_where_there_are_the_fewest_and_a_step_is_one_call() -> None:
    async def body(cluster: Cluster) -> None:
        sessions = await asyncio.gather(*(cluster.pool.open() for _ in range(6)))
        assert [link.node for link in cluster.links] == NODES
        assert [link.asked.count("open") for link in cluster.links] == [3, 3]
        before = sum(len(link.asked) for link in cluster.links)
        await sessions[0].step("x")
        assert sum(len(link.asked) for link in cluster.links) == before + 1
        for session in sessions[:3]:
            await session.close()
        await asyncio.gather(*(cluster.pool.open() for _ in range(3)))
        assert [link.asked.count("open") - link.asked.count("close") for link in cluster.links] == [3, 3]

    with_cluster(body, *NODES)


def test_a_host_that_dies_costs_its_sessions_alone_and_is_made_again() -> None:
    async def body(cluster: Cluster) -> None:
        sessions = [await cluster.pool.open() for _ in range(4)]
        waiting = asyncio.ensure_future(sessions[0].step("hang"))
        await sessions[1].step("x")
        cluster.links[0].kill()
        for _ in range(2):
            with pytest.raises(ServerLost, match="host on node blue was lost: the node has no power"):
                await waiting if not waiting.done() else await sessions[2].step("x")
        await sessions[2].close()
        assert await answer(sessions[3], "x") == "x"
        again = [await cluster.pool.open() for _ in range(2)]
        assert [await answer(session, "y") for session in again] == ["y", "y"]
        assert [link.node.name for link in cluster.links] == ["blue", "green", "blue"]
        counted = {name: count for name, count in cluster.pool.stats().items() if count}
        assert counted == {"steps": 4, "faults": 2, "restarts": 1, "servers": 1}

    with_cluster(body, *NODES)


def test_a_silent_host_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PING_EVERY_S", 0.02)
    monkeypatch.setattr(remote, "SILENT_S", 0.3)

    async def body(cluster: Cluster) -> None:
        session = await cluster.pool.open()
        cluster.links[0].silent = True
        with pytest.raises(ServerLost, match=r"host on node blue was lost: it did not answer within 0\.3 s"):
            await session.step("x")
        assert cluster.links[0].gone.is_set()
        # Answered pings keep a host, however long a call takes.
        slow = asyncio.ensure_future((await cluster.pool.open()).step("hang"))
        await asyncio.sleep(0.6)
        assert not slow.done()
        slow.cancel()
        assert cluster.pool.stats()["restarts"] == 1

    with_cluster(body, NODES[0])


def test_a_node_that_cannot_be_reached_costs_no_episode_while_there_are_others() -> None:
    async def body(cluster: Cluster) -> None:
        cluster.down = {NODES[0]}
        sessions = await asyncio.gather(*(cluster.pool.open() for _ in range(3)))
        assert [await answer(session, "x") for session in sessions] == ["x"] * 3
        cluster.nodes = NODES[:1]
        cluster.links[-1].kill()
        with pytest.raises(EnvFault, match="green was lost"):
            await sessions[0].step("x")
        with pytest.raises(EnvFault, match=r"^no node .* can run environments: .* blue was lost: .* no power$"):
            await cluster.pool.open()
        cluster.nodes = []
        with pytest.raises(EnvFault, match=r"can run environments: it has none$"):
            await cluster.pool.open()
        # Of three hosts that were lost, one had started.
        assert cluster.pool.stats()["servers"] == 1

    with_cluster(body, *NODES)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"preload_fails": True}, EnvFault, r"^probe: the data folder is missing \(on node blue\)$"),
        ({"make_refuses": True}, UnknownTask, r"no such data \(on node blue\)$"),
    ],
)
def test_what_cannot_start_names_the_node(options: dict[str, bool], kind: type[EnvError], message: str) -> None:
    async def body(cluster: Cluster) -> None:
        for _ in range(2):
            with pytest.raises(kind, match=message) as stop:
                await cluster.pool.open()
            assert getattr(stop.value, "refused", True)
        assert len(cluster.links) == 1

    with_cluster(body, NODES[0], env_options=options)


def test_a_plugin_that_a_node_lacks_is_named_by_its_processes() -> None:
    async def run() -> None:
        settings = RolloutSettings("probe", plugins=("absent.py",))
        pool = RemotePool(lambda: NODES[:1], lambda node: Nearby(settings, node))
        with pytest.raises(EnvError, match=r"no plugin file .* \(on node blue\)$"):
            await pool.open()
        await pool.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("method", ["open", "step"])
def test_a_cancelled_call_is_given_up_at_its_host(method: str) -> None:
    async def body(cluster: Cluster) -> None:
        first = await cluster.pool.open()
        number = await answer(first, "number")
        before = len(cluster.links[0].asked)
        work = asyncio.ensure_future(cluster.pool.open() if method == "open" else first.step("x"))
        while len(cluster.links[0].asked) == before:
            await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await first.close()
        assert cluster.links[0].host._sessions == {}
        third = await cluster.pool.open()
        assert (await answer(third, "number") == number) == (method == "open")

    with_cluster(body, NODES[0])


def test_closing_ends_the_processes_and_loses_open_sessions() -> None:
    async def body(cluster: Cluster) -> None:
        session = await cluster.pool.open()
        await session.reset("a", 0)
        await cluster.pool.aclose()
        await cluster.pool.aclose()
        assert cluster.links[0].host._pool.pids == []
        with pytest.raises(EnvFault, match="the environment pool was closed during the episode") as stop:
            await session.step("x")
        assert not isinstance(stop.value, ServerLost)
        with pytest.raises(EnvError, match="pool is closed"):
            await cluster.pool.open()
        await session.close()
        assert {name: count for name, count in cluster.pool.stats().items() if count} == {"resets": 1, "faults": 1}

    with_cluster(body, NODES[0])
