"""The loop of one worker process, which answers requests for its environment instances in order on one thread.

A step that waits for something outside of the process is answered when it ends; meanwhile the loop goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import time
import traceback
from collections.abc import Coroutine, Sequence
from typing import Any

from agent_envs import registry
from agent_envs.base import Expert, StepResult, TextEnv
from agent_envs.errors import EnvError, UnknownTask
from agent_envs.workers.wire import FAULT, OK, READ_SIZE, UNKNOWN_TASK, WAITING, EnvSpec, FrameReader, frame

__all__ = ["serve"]

FLUSH_S = 0.001
"""Seconds after which collected replies are sent, so that those of fast environments travel together."""


def serve(connection: socket.socket, spec: EnvSpec) -> None:
    """Answer requests until the pool closes its end of ``connection``."""
    waiting = _Waiting(connection)
    worker = _Worker(spec, waiting)
    reader = FrameReader()
    replies = bytearray()
    try:
        while data := waiting.receive():
            flushed = time.monotonic()
            for number, _, payload in reader.feed(data):
                kind, answer = worker.answer(number, payload)
                replies += frame(number, kind, answer)
                if time.monotonic() - flushed > FLUSH_S:
                    connection.sendall(replies)
                    replies.clear()
                    flushed = time.monotonic()
            connection.sendall(replies)
            replies.clear()
    except (BrokenPipeError, ConnectionResetError):
        pass  # The pool closed its end while a reply was on its way.
    worker.close()


class _Waiting:
    """The steps that wait. They get on only inside ``receive``, so that other requests run outside of an event loop."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.new_event_loop()
        self._steps: dict[int, asyncio.Task[tuple[int, bytes]]] = {}
        """Running steps by the number of their request."""

    def add(self, number: int, step: Coroutine[Any, Any, tuple[int, bytes]]) -> asyncio.Task[tuple[int, bytes]]:
        """Begin a step, whose reply is sent when it has ended."""
        task = self._steps[number] = self._loop.create_task(step)
        task.add_done_callback(lambda ended: self._reply(number, ended))
        return task

    def receive(self) -> bytes:
        """Return the next bytes from the pool; while there are none, let steps get on."""
        if self._steps:
            arrived: asyncio.Future[None] = self._loop.create_future()
            self._loop.add_reader(self._connection, _settle, arrived)
            self._loop.run_until_complete(arrived)
            self._loop.remove_reader(self._connection)
        return self._connection.recv(READ_SIZE)

    def _reply(self, number: int, task: asyncio.Task[tuple[int, bytes]]) -> None:
        del self._steps[number]
        # Nobody waits for a cancelled step, but its request is open until it is answered.
        kind, answer = (FAULT, pickle.dumps(("the step was cancelled",))) if task.cancelled() else task.result()
        # A pool that has closed its end is noticed by the next ``receive``.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(frame(number, kind, answer))


def _settle(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


class _Worker:
    """The instances of this process by number."""

    def __init__(self, spec: EnvSpec, waiting: _Waiting) -> None:
        self._spec = spec
        self._waiting = waiting
        self._steps: dict[int, asyncio.Task[tuple[int, bytes]]] = {}
        """The latest step of each instance that waits."""
        self._envs: dict[int, TextEnv] = {}
        self._experts: dict[int, Expert | None] = {}

    def answer(self, number: int, request: bytes) -> tuple[int, bytes]:
        """Return kind and payload of the reply to one request. An instance that raised is not used again."""
        operation, instance, *arguments = pickle.loads(request)
        try:
            if operation == "step" and self._envs[instance].waits:
                step = self._envs[instance].astep(*arguments)
                self._steps[instance] = self._waiting.add(number, self._awaited(instance, step))
                return WAITING, b""
            return OK, pickle.dumps(self._perform(operation, instance, arguments), pickle.HIGHEST_PROTOCOL)
        # SystemExit too: engines written as programs call sys.exit, which ends their episode, not this process.
        except BaseException as error:
            return self._failed(operation, instance, error)

    async def _awaited(self, instance: int, step: Coroutine[Any, Any, StepResult]) -> tuple[int, bytes]:
        """Return kind and payload of the reply to a step that waits."""
        try:
            return OK, pickle.dumps(await step, pickle.HIGHEST_PROTOCOL)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # It has ended, and must not be cancelled with its instance.
            self._steps.pop(instance, None)
            return self._failed("step", instance, error)

    def _failed(self, operation: str, instance: int, error: BaseException) -> tuple[int, bytes]:
        """Return the reply about an exception that is being handled, and give its instance up if it is at fault."""
        if isinstance(error, UnknownTask):
            return UNKNOWN_TASK, pickle.dumps(str(error))
        self._drop(instance)
        reason = str(error) if isinstance(error, EnvError) else f"{type(error).__name__}: {error}"
        message = f"environment {self._spec.name!r} failed in {operation}: {reason}"
        refused = isinstance(error, EnvError | ValueError)
        return FAULT, pickle.dumps((message, traceback.format_exc(), refused))

    def close(self) -> None:
        for instance in list(self._envs):
            self._drop(instance)

    def _perform(self, operation: str, instance: int, arguments: list[Any]) -> Any:
        if operation == "make":
            self._envs[instance] = self._make()
            return None
        if operation == "drop":
            return self._drop(instance)
        env = self._envs[instance]
        if operation == "step":
            return env.step(*arguments)
        if operation == "reset":
            self._experts.pop(instance, None)
            return env.reset(*arguments)
        if operation == "snapshot":
            return env.snapshot()
        if operation == "restore":
            self._experts.pop(instance, None)
            return env.restore(*arguments)
        if operation == "max_steps":
            return env.max_steps
        if operation == "splits":
            return tuple(env.splits)
        if operation == "tasks":
            split, spelled_out = arguments
            return _packed(env.tasks(split), spelled_out)
        if operation == "inspection":
            function, others = pickle.loads(*arguments)
            return function(self._make, *others)
        if instance not in self._experts:
            self._experts[instance] = env.expert()
        expert = self._experts[instance]
        return expert and expert()

    def _make(self) -> TextEnv:
        return registry.make(self._spec.name, max_steps=self._spec.max_steps, **self._spec.options)

    def _drop(self, instance: int) -> None:
        self._experts.pop(instance, None)
        step = self._steps.pop(instance, None)
        if step is not None:
            step.cancel()
        env = self._envs.pop(instance, None)
        if env is not None:
            # The instance is not used again; if it raised an exception before, the caller gets that one.
            with contextlib.suppress(Exception):
                env.close()


def _packed(tasks: Sequence[str], spelled_out: bool) -> bytes:
    """Pickle ``tasks``; a sequence that makes its ids on demand stays one if it can be pickled."""
    if not spelled_out and not isinstance(tasks, list | tuple):
        # The sequence cannot be pickled, but its ids can.
        with contextlib.suppress(Exception):
            return pickle.dumps(tasks, pickle.HIGHEST_PROTOCOL)
    return pickle.dumps(tuple(tasks), pickle.HIGHEST_PROTOCOL)
