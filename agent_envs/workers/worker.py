"""The loop of one worker process, which answers requests for its environment instances in order on one thread."""

from __future__ import annotations

import contextlib
import pickle
import socket
import time
import traceback
from collections.abc import Sequence
from typing import Any

from agent_envs import registry
from agent_envs.base import Expert, TextEnv
from agent_envs.errors import EnvError, UnknownTask
from agent_envs.workers.wire import FAULT, OK, READ_SIZE, UNKNOWN_TASK, EnvSpec, FrameReader, frame

__all__ = ["serve"]

FLUSH_S = 0.001
"""Seconds after which collected replies are sent, so that those of fast environments travel together."""


def serve(connection: socket.socket, spec: EnvSpec) -> None:
    """Answer requests until the pool closes its end of ``connection``."""
    worker = _Worker(spec)
    reader = FrameReader()
    replies = bytearray()
    try:
        while data := connection.recv(READ_SIZE):
            flushed = time.monotonic()
            for number, _, payload in reader.feed(data):
                kind, answer = worker.answer(payload)
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


class _Worker:
    """The instances of this process by number."""

    def __init__(self, spec: EnvSpec) -> None:
        self._spec = spec
        self._envs: dict[int, TextEnv] = {}
        self._experts: dict[int, Expert | None] = {}

    def answer(self, request: bytes) -> tuple[int, bytes]:
        """Return kind and payload of the reply to one request. An instance that raised is not used again."""
        operation, instance, *arguments = pickle.loads(request)
        try:
            return OK, pickle.dumps(self._perform(operation, instance, arguments), pickle.HIGHEST_PROTOCOL)
        except UnknownTask as error:
            return UNKNOWN_TASK, pickle.dumps(str(error))
        # SystemExit too: engines written as programs call sys.exit, which ends their episode, not this process.
        except BaseException as error:
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
