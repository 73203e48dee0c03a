"""The host's side: an environment pool whose sessions are called from another process, by number."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple

from agent_envs import registry
from agent_envs.errors import EnvError, EnvFault
from agent_envs.workers import Session
from openrlhf_gagpo.rollout.player import RolloutSettings, local_pool

__all__ = ["Answer", "EnvHost"]


class Answer(NamedTuple):
    """What a host answers to any call."""

    stats: dict[str, int]
    """The counters of its pool."""
    succeeded: bool
    content: Any
    """The result, or the ``EnvError`` that was raised."""


class EnvHost:
    """An environment pool on its node, and the sessions that another process has opened in it.

    Every call returns a pickled ``Answer``. Errors of environments so arrive with class and details, and text that Ray
    itself cannot encode passes.
    """

    def __init__(self, settings: RolloutSettings) -> None:
        for plugin in settings.plugins:
            # Results of its classes are read in this process. The pool's own processes load it too and say why not.
            with suppress(EnvError):
                registry.load_plugin(plugin)
        self._pool = local_pool(settings)
        self._sessions: dict[int, Session] = {}
        self._running: dict[int, asyncio.Future[Any]] = {}
        """The call that each session is in."""

    async def ping(self) -> bytes:
        """Answer at once."""
        return await self._answer(asyncio.sleep(0))

    async def open(self, number: int) -> bytes:
        """Open a session, which the caller calls ``number``."""
        return await self._answer(self._open(number))

    async def call(self, number: int, method: str, arguments: bytes) -> bytes:
        """Call a method of a session with pickled arguments."""
        return await self._answer(self._call(number, method, arguments))

    async def close(self, number: int) -> bytes:
        """Close a session and give up the call that it is in."""
        return await self._answer(self._close(number))

    async def inspect(self, request: bytes) -> bytes:
        """Run a pickled function with its arguments, as ``EnvPool.inspect`` does."""
        return await self._answer(self._inspect(request))

    async def aclose(self) -> bytes:
        """End the environment processes."""
        return await self._answer(self._pool.aclose())

    async def _open(self, number: int) -> None:
        self._sessions[number] = await self._run(number, self._pool.open())

    async def _call(self, number: int, method: str, arguments: bytes) -> object:
        return await self._run(number, getattr(self._sessions[number], method)(*pickle.loads(arguments)))

    async def _run(self, number: int, work: Coroutine[Any, Any, Any]) -> Any:
        running = self._running[number] = asyncio.ensure_future(work)
        try:
            return await running
        except asyncio.CancelledError:
            raise EnvFault("the call was given up") from None
        finally:
            self._running.pop(number, None)

    async def _close(self, number: int) -> None:
        running = self._running.get(number)
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        # There is none if it could not be opened.
        session = self._sessions.pop(number, None)
        if session is not None:
            await session.close()

    async def _inspect(self, request: bytes) -> object:
        try:
            function, arguments = pickle.loads(request)
        except Exception as error:
            raise EnvFault(f"the function to inspect with cannot be imported: {error!r}") from error
        return await self._pool.inspect(function, *arguments)

    async def _answer(self, work: Awaitable[object]) -> bytes:
        try:
            succeeded, content = True, await work
        except EnvError as error:
            succeeded, content = False, error
        return pickle.dumps(Answer(self._pool.stats(), succeeded, content), pickle.HIGHEST_PROTOCOL)
