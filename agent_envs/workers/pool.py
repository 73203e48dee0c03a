"""Many environment instances in a few worker processes, used from one event loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

from agent_envs.base import Reset, StepResult, TextEnv
from agent_envs.errors import EnvError, EnvFault, ServerLost
from agent_envs.workers.channel import Call, Channel
from agent_envs.workers.launcher import Launcher
from agent_envs.workers.wire import EnvSpec

__all__ = ["RESET_TIMEOUT_S", "STEP_TIMEOUT_S", "EnvPool", "PoolStats", "Session"]

Arguments = TypeVarTuple("Arguments")
Answer = TypeVar("Answer")

RESET_TIMEOUT_S = 120.0
STEP_TIMEOUT_S = 60.0
CLOSE_GRACE_S = 5.0
"""Time that workers get to close their environments before they are killed."""

_log = logging.getLogger(__name__)


@dataclass
class PoolStats:
    """Counters since the pool was made."""

    resets: int = 0
    steps: int = 0
    faults: int = 0
    """Sessions that lost their environment, for any reason."""
    timeouts: int = 0
    restarts: int = 0
    """Workers that died or were killed; each is replaced when it is next needed."""
    servers: int = 0
    """Fork servers that died or hung, with all their workers; each is replaced when it is next needed."""


class EnvPool:
    """Instances of environment ``name`` in ``size`` worker processes.

    A session has one instance to itself; a worker runs its sessions in turn, on one thread, and goes on with others
    while a step waits for something outside of it (``TextEnv.waits``). Instances are made on demand and reused.
    Everything happens in the event loop (and its thread) of the first call.

    Args:
        name, options: what ``agent_envs.make`` takes.
        size: number of worker processes.
        plugins: loaded in the workers before ``name`` is looked up.
        max_steps: as ``agent_envs.make`` takes it.
        reset_timeout: seconds for a reset, for making an instance, listing tasks or asking the expert.
        step_timeout: seconds for a step. A worker that exceeds either is killed, with all its sessions; a step that
            waits loses its own session only.
        start_timeout: seconds to import the environment and run its ``preload(**options)``; all workers share what
            that loads.

    Raises:
        ValueError: ``size`` or a timeout is out of range, or the options hold another ``max_steps``.
    """

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        size: int = 1,
        plugins: Sequence[str] = (),
        reset_timeout: float = RESET_TIMEOUT_S,
        step_timeout: float = STEP_TIMEOUT_S,
        start_timeout: float = 600.0,
        max_steps: int | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"An environment pool of {size} workers cannot run anything; use at least 1.")
        if min(reset_timeout, step_timeout, start_timeout) <= 0:
            raise ValueError("The reset, step and start timeouts of an environment pool must be above 0 seconds.")
        given = dict(options or {})
        limits = [limit for limit in (max_steps, given.pop("max_steps", None)) if limit is not None]
        if any(limit != limits[0] for limit in limits):
            raise ValueError("An environment pool got two step limits; leave max_steps out of its options.")
        self._spec = EnvSpec(name, given, tuple(plugins), limits[0] if limits else None)
        self._size = size
        self._slow_timeout = reset_timeout
        self._step_timeout = step_timeout
        self._start_timeout = start_timeout
        self._stats = PoolStats()
        self._launcher = Launcher(self._worker_exited, self._server_lost)
        self._channels: dict[int, Channel] = {}
        self._numbers = itertools.count()
        self._tasks: dict[str, Sequence[str]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._all_exited = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def pids(self) -> list[int]:
        """Ids of the pool's processes: the fork server, then its workers."""
        return self._launcher.pids

    def stats(self) -> dict[str, int]:
        """Return the counters of ``PoolStats`` by name."""
        return asdict(self._stats)

    async def start(self) -> None:
        """Load the environment; the other calls do this if it has not been done.

        Raises ``EnvError`` if that fails; it is an ``EnvFault``, with the traceback, if the environment is the cause,
        and a ``ServerLost`` if the fork server died.
        """
        loop = asyncio.get_running_loop()
        if self._closed:
            raise EnvError("This environment pool is closed; make another one.")
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise EnvError("An environment pool belongs to the event loop that used it first; make one per loop.")
        if self._starting is None:
            self._starting = loop.create_task(self._launcher.start(self._spec, self._start_timeout))
        starting = self._starting
        try:
            # Shielded, because all callers share the start; cancelling one ends only its own wait.
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            if not self._closed:
                raise
        except Exception as error:
            if self._starting is starting:
                self._starting = None
                if isinstance(error, ServerLost):
                    self._count_lost_server(f"the fork server of environment {self._spec.name!r} died while it loaded")
            raise
        if self._closed:
            raise EnvError("The environment pool was closed while it started.")

    async def open(self) -> Session:
        """Open a session with an instance of its own.

        Raises ``EnvFault`` if the instance cannot be made, or ``UnknownTask`` if its constructor raises that. The fault
        is a ``ServerLost`` if the fork server is at fault, which the next call replaces.
        """
        await self.start()
        if len(self._channels) < self._size:
            number = next(self._numbers)
            channel = self._channels[number] = Channel(
                number, self._launcher.spawn(number), self._worker_late, self._step_overdue
            )
        else:
            channel = min(self._channels.values(), key=lambda channel: len(channel.sessions))
        reused = bool(channel.idle)
        session = Session(self, channel, channel.idle.pop() if reused else next(self._numbers))
        channel.sessions.add(session)
        if not reused:
            try:
                await session._call("make", self._slow_timeout)
            except BaseException:
                # The constructor was cancelled or failed, so the instance is not reused.
                session._abandoned = True
                await session.close()
                raise
        return session

    async def tasks(self, split: str) -> Sequence[str]:
        """Return the task ids of a split. Raises ``UnknownTask`` for a split that the environment does not have.

        A sequence that makes its ids on demand stays one if it can be pickled; all others become tuples.
        """
        if split not in self._tasks:
            session = await self.open()
            try:
                packed = await session._call("tasks", self._slow_timeout, split, False)
                try:
                    self._tasks[split] = pickle.loads(packed)
                except Exception:
                    # Only the workers can import its class, for example from a plugin that is not loaded here.
                    packed = await session._call("tasks", self._slow_timeout, split, True)
                    self._tasks[split] = pickle.loads(packed)
            finally:
                await session.close()
        return self._tasks[split]

    async def inspect(
        self,
        function: Callable[[Callable[[], TextEnv], *Arguments], Answer],
        *arguments: *Arguments,
        timeout: float | None = None,
    ) -> Answer:
        """Return the result of ``function(make, *arguments)`` in a worker process, where ``make()`` is a new instance.

        The worker has to be able to import the function, which may take ``timeout`` seconds, by default as long as a
        reset. Raises ``EnvFault``.
        """
        session = await self.open()
        try:
            seconds = self._slow_timeout if timeout is None else timeout
            # Pickled separately, so that a function that the worker cannot import is a fault and the worker goes on.
            answer: Answer = await session._call("inspection", seconds, pickle.dumps((function, arguments)))
        finally:
            await session.close()
        return answer

    async def aclose(self) -> None:
        """Let the workers close their environments, then end all processes. Open sessions are lost."""
        if self._closed:
            return
        self._closed = True
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        for channel in self._channels.values():
            self._lose_sessions(channel, EnvFault("the environment pool was closed during the episode"))
        try:
            if self._channels:
                await asyncio.wait_for(self._all_exited.wait(), CLOSE_GRACE_S)
        except TimeoutError:
            pass  # A worker hangs; it is killed below.
        finally:
            self._launcher.kill()
            self._channels.clear()

    def _worker_late(self, channel: Channel, call: Call) -> None:
        if self._launcher.awaits(channel.number):
            # Not the worker is late but the fork server, which has a limit of its own.
            channel.postpone()
            return
        self._stats.timeouts += 1
        message = self._slow(call)
        if not call.future.done():
            call.future.set_exception(EnvFault(message + "; its worker process was killed"))
        self._launcher.kill_worker(channel.number)
        self._replace(channel, EnvFault(f"another session of the same worker process was stuck ({message})"))

    def _step_overdue(self, channel: Channel, call: Call) -> None:
        if call.future.done():
            return  # The caller was cancelled, and its session gives the instance up.
        self._stats.timeouts += 1
        call.future.set_exception(EnvFault(self._slow(call)))
        channel.drop(call.instance, self._slow_timeout)

    def _slow(self, call: Call) -> str:
        return f"environment {self._spec.name!r} did not finish {call.operation} within {call.timeout:g} s"

    def _worker_exited(self, number: int, code: int) -> None:
        channel = self._channels.get(number)
        if channel is None:
            return
        if self._closed:
            del self._channels[number]
            if not self._channels:
                self._all_exited.set()
            return
        how = f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
        self._replace(channel, EnvFault(f"the worker process of environment {self._spec.name!r} {how}"))

    def _server_lost(self, how: str) -> None:
        self._starting = None
        if self._closed:
            self._all_exited.set()
            return
        message = f"the fork server of environment {self._spec.name!r} {how}, and its workers with it"
        self._count_lost_server(message)
        for channel in list(self._channels.values()):
            self._replace(channel, ServerLost(message))

    def _count_lost_server(self, message: str) -> None:
        self._stats.servers += 1
        _log.warning("%s; another one is started when it is needed", message)

    def _replace(self, channel: Channel, fault: EnvFault) -> None:
        """Remove a worker; ``open`` starts another in its place."""
        del self._channels[channel.number]
        self._stats.restarts += 1
        self._lose_sessions(channel, fault)

    def _lose_sessions(self, channel: Channel, fault: EnvFault) -> None:
        channel.close(fault)
        for session in list(channel.sessions):
            session._lose(fault)


class Session:
    """One environment instance, lent out by ``EnvPool.open`` for any number of episodes, one at a time.

    Every method raises ``EnvFault`` when the instance is lost because it raised an exception or its worker died or was
    too slow, and ``ServerLost`` when all workers were lost at once. The session cannot be used after that; open
    another.
    """

    def __init__(self, pool: EnvPool, channel: Channel, instance: int) -> None:
        self._pool = pool
        self._channel = channel
        self._instance = instance
        self._fault: EnvFault | None = None
        self._closed = False
        self._abandoned = False
        """Whether a call was cancelled, so that the instance may still be busy, or the instance was never finished."""

    async def max_steps(self) -> int:
        """Return the environment's step limit."""
        limit: int = await self._call("max_steps", self._pool._slow_timeout)
        return limit

    async def splits(self) -> tuple[str, ...]:
        """Return the splits of the instance."""
        splits: tuple[str, ...] = await self._call("splits", self._pool._slow_timeout)
        return splits

    async def reset(self, task: str, seed: int) -> Reset:
        """Start ``task``. Raises ``UnknownTask``, which leaves the session usable."""
        result: Reset = await self._call("reset", self._pool._slow_timeout, task, seed)
        self._pool._stats.resets += 1
        return result

    async def step(self, action: str) -> StepResult:
        """Take one action given as text."""
        result: StepResult = await self._call("step", self._pool._step_timeout, action)
        self._pool._stats.steps += 1
        return result

    async def snapshot(self) -> object:
        """Return the state of the running episode, as ``TextEnv.snapshot`` does."""
        state: object = await self._call("snapshot", self._pool._step_timeout)
        return state

    async def restore(self, state: object) -> None:
        """Continue from a state that any session of an equal environment returned."""
        await self._call("restore", self._pool._slow_timeout, state)

    async def expert_action(self) -> str:
        """Return the expert's action for the current state. Raises ``EnvError`` if the environment has no expert."""
        action: str | None = await self._call("expert", self._pool._slow_timeout)
        if action is None:
            raise EnvError(f"Environment {self._pool._spec.name!r} has no expert.")
        return action

    async def close(self) -> None:
        """Return the instance to the pool for reuse. Closing twice, or after a fault, does nothing."""
        if self._closed:
            return
        self._closed = True
        self._channel.sessions.discard(self)
        if self._fault is not None:
            return
        if self._abandoned:
            self._channel.drop(self._instance, self._pool._slow_timeout)
        else:
            self._channel.idle.append(self._instance)

    async def _call(self, operation: str, timeout: float, *arguments: Any) -> Any:
        if self._fault is not None:
            raise self._fault.again()
        if self._closed:
            raise EnvError("This environment session is closed; open another.")
        try:
            return await self._channel.call(operation, self._instance, arguments, timeout)
        except EnvFault as fault:
            self._lose(fault)
            raise
        except asyncio.CancelledError:
            self._abandoned = True
            raise

    def _lose(self, fault: EnvFault) -> None:
        if self._fault is None:
            self._fault = fault
            self._channel.sessions.discard(self)
            if not self._closed:
                self._pool._stats.faults += 1
