"""The player's side: sessions with environments that run in hosts on other nodes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol, TypeVar, TypeVarTuple

from agent_envs.base import Reset, StepResult, TextEnv
from agent_envs.errors import EnvError, EnvFault, ServerLost
from agent_envs.workers import PoolStats
from openrlhf_gagpo.backends.remote_envs.host import Answer

__all__ = ["Link", "Node", "RemotePool", "RemoteSession"]

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

START_S = 300.0
"""Time that a host gets to start; it then loads the environment, which has a limit of its own."""
PING_EVERY_S = 10.0
SILENT_S = 60.0
"""Time in which a host answers a ping. Its calls may take longer: the limits of their own are kept on its node."""
CLOSE_S = 15.0
"""Time that a host gets to end its environment processes."""

logger = logging.getLogger(__name__)


class Node(NamedTuple):
    """A node on which environments can run."""

    id: str
    name: str
    """For readers."""


class Link(Protocol):
    """A way to one ``EnvHost``, which starts with it."""

    def ask(self, method: str, *arguments: object) -> Coroutine[Any, Any, bytes]:
        """Return what a method of the host returns. Raises ``ConnectionError`` if there is no host any more."""
        ...

    def kill(self) -> None:
        """End the host, whatever it does."""
        ...


class RemotePool:
    """Instances of one environment on several nodes, as ``rollout.pools.EnvironmentPool``.

    There is a host on each node, made when it is first needed. A session is opened where there are the fewest. A host
    that dies, or no longer answers, costs its sessions a ``ServerLost`` each and is made again like a fork server. A
    node on which none can be made costs nothing as long as there are others.

    Args:
        find_nodes: returns the nodes; called at first and whenever a host was lost.
        connect: starts a host on a node.
    """

    def __init__(self, find_nodes: Callable[[], Sequence[Node]], connect: Callable[[Node], Link]) -> None:
        self._find_nodes = find_nodes
        self._connect = connect
        self._nodes: Sequence[Node] = ()
        self._hosts: dict[str, _Host] = {}
        self._numbers = itertools.count()
        self._past: Counter[str] = Counter(asdict(PoolStats()))
        """What hosts that were lost have counted, and these losses."""
        self._closed = False

    def stats(self) -> dict[str, int]:
        """Return the counters of ``PoolStats`` over all nodes, as of the last answer of each."""
        return {name: self._past[name] + sum(host.stats[name] for host in self._hosts.values()) for name in self._past}

    async def open(self) -> RemoteSession:
        """Open a session with an instance of its own. Raises as ``EnvPool.open`` does, and names the node."""
        host = await self._host()
        session = RemoteSession(host, next(self._numbers))
        host.sessions.add(session)
        try:
            await host.ask("open", session.number)
        except BaseException as error:
            await session.close()
            # The sentence of a host that was lost has the node in it.
            if isinstance(error, EnvError) and self._hosts.get(host.node.id) is host:
                error.args = (f"{error} (on node {host.node.name})",)
            raise
        return session

    async def inspect(
        self, function: Callable[[Callable[[], TextEnv], *Arguments], Result], *arguments: *Arguments
    ) -> Result:
        """Return the result of ``function(make, *arguments)`` in a worker process; see ``EnvPool.inspect``."""
        answer: Result = await (await self._host()).ask("inspect", pickle.dumps((function, arguments)))
        return answer

    async def aclose(self) -> None:
        """End all hosts with their processes. Open sessions are lost."""
        self._closed = True
        hosts = list(self._hosts.values())
        await asyncio.gather(*(host.aclose() for host in hosts))

    async def _host(self) -> _Host:
        """Return a host that has started: that with the fewest sessions, among those that can be reached."""
        unreachable: dict[str, str] = {}
        while True:
            if self._closed:
                raise EnvError("This environment pool is closed; make another one.")
            host = self._with_fewest(unreachable)
            host.expected += 1
            try:
                # Shielded, because all callers share the start.
                await asyncio.shield(host.started)
                return host
            except ConnectionError as error:
                unreachable[host.node.id] = str(error)
            finally:
                host.expected -= 1

    def _with_fewest(self, unreachable: dict[str, str]) -> _Host:
        if not self._nodes:
            self._nodes = self._find_nodes()
        nodes = [node for node in self._nodes if node.id not in unreachable]
        if not nodes:
            self._nodes = ()
            why = "; ".join(unreachable.values()) or "it has none"
            raise EnvFault(f"no node of the Ray cluster can run environments: {why}")
        node = min(nodes, key=lambda node: self._hosts[node.id].load if node.id in self._hosts else 0)
        if node.id not in self._hosts:
            self._hosts[node.id] = _Host(node, self._connect(node), self._on_lost)
        return self._hosts[node.id]

    def _on_lost(self, host: _Host, fault: EnvFault) -> None:
        del self._hosts[host.node.id]
        # Nodes may have come and gone with it.
        self._nodes = ()
        self._past.update(host.stats)
        self._past["restarts"] += not self._closed
        # One that never started had no environments to lose.
        if not self._closed and host.started.done():
            self._past["servers"] += 1
            logger.warning("%s; another one is started when it is needed", fault)
        self._past["faults"] += len(host.sessions)


class RemoteSession:
    """A session of a host. It raises what a session of ``agent_envs.workers`` does, also if the host is lost."""

    def __init__(self, host: _Host, number: int) -> None:
        self.number = number
        self._host = host
        self._fault: EnvFault | None = None
        self._closed = False

    async def reset(self, task: str, seed: int) -> Reset:
        """Start ``task``. Raises ``UnknownTask``, which leaves the session usable."""
        result: Reset = await self._call("reset", task, seed)
        return result

    async def step(self, action: str) -> StepResult:
        """Take one action given as text."""
        result: StepResult = await self._call("step", action)
        return result

    async def snapshot(self) -> object:
        """Return the state of the running episode."""
        state: object = await self._call("snapshot")
        return state

    async def restore(self, state: object) -> None:
        """Continue from a state that any session of an equal environment returned."""
        await self._call("restore", state)

    async def close(self) -> None:
        """Return the instance to its pool for reuse. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._host.sessions.discard(self)
        # Without a host there is nothing to close.
        with suppress(EnvFault):
            await self._host.ask("close", self.number)

    async def _call(self, method: str, *arguments: object) -> Any:
        if self._fault is not None:
            raise self._fault.again()
        if self._closed:
            raise EnvError("This environment session is closed; open another.")
        try:
            return await self._host.ask("call", self.number, method, pickle.dumps(arguments))
        except EnvFault as fault:
            self._fault = fault
            self._host.sessions.discard(self)
            raise


class _Host:
    """A host as the pool sees it; ``on_lost(host, fault)`` is called once, when it is lost or closed."""

    def __init__(self, node: Node, link: Link, on_lost: Callable[[_Host, EnvFault], None]) -> None:
        self.node = node
        self.sessions: set[RemoteSession] = set()
        self.expected = 0
        """Callers that wait for its start."""
        self.stats = asdict(PoolStats())
        self._link = link
        self._on_lost = on_lost
        self._loss: asyncio.Future[EnvFault] = asyncio.get_running_loop().create_future()
        """Done with the fault of all who lose by it when the host is lost or closed."""
        self.started = asyncio.ensure_future(self._start())
        """Done when the host has answered once; raises ``ConnectionError`` if it does not."""
        self._watching: asyncio.Future[None] | None = None

    @property
    def load(self) -> int:
        """Number of its sessions, present and expected."""
        return len(self.sessions) + self.expected

    async def ask(self, method: str, *arguments: object) -> Any:
        """Return the content of a host's answer, or raise the ``EnvError`` in it; ``ServerLost`` without a host."""
        if self._loss.done():
            raise self._loss.result().again()
        asked = asyncio.ensure_future(self._link.ask(method, *arguments))
        either: list[asyncio.Future[Any]] = [asked, self._loss]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise self._loss.result().again()
            packed = asked.result()
        except ConnectionError as error:
            raise self.lose(str(error)) from error
        finally:
            asked.cancel()
        try:
            answer: Answer = pickle.loads(packed)
        except Exception as error:
            raise EnvFault(f"an environment's result cannot be read outside its node: {error!r}") from error
        # Answers may overtake each other, but counters only grow.
        self.stats = {name: max(known, answer.stats[name]) for name, known in self.stats.items()}
        if answer.succeeded:
            return answer.content
        raise answer.content

    def lose(self, reason: str, kind: type[EnvFault] = ServerLost) -> EnvFault:
        """Give the host up, and return the fault of all who lose by it."""
        if not self._loss.done():
            fault = kind(f"the environment host on node {self.node.name} was lost: {reason}")
            self._loss.set_result(fault)
            self._link.kill()
            self._on_lost(self, fault)
        return self._loss.result().again()

    async def aclose(self) -> None:
        """End the host with its processes."""
        with suppress(TimeoutError, EnvFault):
            await asyncio.wait_for(self.ask("aclose"), CLOSE_S)
            # Its counters hold their loss by now.
            self.sessions.clear()
        self.lose("the environment pool was closed during the episode", EnvFault)

    async def _start(self) -> None:
        await self._ping(START_S)
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        with suppress(ConnectionError):
            while not (await asyncio.wait([self._loss], timeout=PING_EVERY_S))[0]:
                await self._ping(SILENT_S)

    async def _ping(self, timeout: float) -> None:
        """Raise ``ConnectionError`` after giving the host up if it does not answer in time."""
        pinged = asyncio.ensure_future(self.ask("ping"))
        # Unlike a time-out around it, this finds an answer that came while the loop was busy elsewhere.
        await asyncio.wait([pinged], timeout=timeout)
        if not pinged.done():
            self.lose(f"it did not answer within {timeout:g} s")
        try:
            await pinged
        except EnvFault as fault:
            raise ConnectionError(str(fault)) from fault
