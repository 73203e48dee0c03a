"""The pool's side of its fork server: it starts the server, asks it for workers and learns when they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from agent_envs.errors import EnvError, EnvFault
from agent_envs.workers.wire import CONTROL_LIMIT, EnvSpec

__all__ = ["Launcher"]


class Launcher:
    """One fork server. It calls ``on_exit(number, exit_code)`` when a worker ends, ``on_lost()`` when the server does.

    The server ends with its pool's process or with the thread that started it, so start it in the event loop's thread.
    """

    def __init__(self, on_exit: Callable[[int, int], None], on_lost: Callable[[], None]) -> None:
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._ready: asyncio.Future[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pids: dict[int, int] = {}

    @property
    def pids(self) -> list[int]:
        """Process ids of the server and its workers, for users and tests."""
        return [self._process.pid, *self._pids.values()] if self._process is not None else []

    async def start(self, spec: EnvSpec, timeout: float) -> None:
        """Start the server and wait until the environment is loaded. Raises ``EnvError`` if that fails."""
        loop = asyncio.get_running_loop()
        message = pickle.dumps(spec)
        if len(message) > CONTROL_LIMIT:
            raise EnvError(
                f"The options of environment {spec.name!r} take {len(message)} bytes, more than the {CONTROL_LIMIT} "
                "that can be sent to a worker; pass large data as a path."
            )
        # The server gets this process's sys.path, so that both find the same modules.
        path = [os.path.abspath(entry) for entry in sys.path]
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            code = (
                f"import sys; sys.path[:] = {path!r}; from agent_envs.workers.server import main; "
                f"main({theirs.fileno()}, {os.getpid()})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Outside the terminal's foreground group, so that Ctrl-C does not reach it even while it starts.
                start_new_session=True,
            )
        self._control.setblocking(False)
        self._ready = loop.create_future()
        loop.add_reader(self._control, self._read)
        self._control.send(message)
        try:
            await asyncio.wait_for(self._ready, timeout)
        except TimeoutError:
            self.kill()
            raise EnvError(
                f"Environment {spec.name!r} was not loaded within {timeout:g} s; make its import and preload do less, "
                "or put its data on a faster disk."
            ) from None
        except BaseException:
            self.kill()
            raise

    def spawn(self, number: int) -> socket.socket:
        """Ask for a worker. Requests may be sent to the returned socket at once."""
        if self._control is None:
            raise EnvError("No worker process could be started: the fork server is not running.")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                socket.send_fds(self._control, [pickle.dumps(("spawn", number))], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise EnvError(f"No worker process could be started: the fork server does not answer: {error}") from error
        return ours

    def kill_worker(self, number: int) -> None:
        """Kill a worker, hung or not; do nothing if it has ended."""
        if self._control is None:
            return
        # A server that cannot be reached is dead, and so are its workers.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._control.send(pickle.dumps(("kill", number)))

    def kill(self) -> None:
        """End the server and all its workers at once."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._pids.clear()

    def _read(self) -> None:
        while self._control is not None:
            try:
                message = self._control.recv(CONTROL_LIMIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message = b""
            if not message:
                self._lose()
                return
            self._hear(pickle.loads(message))

    def _hear(self, message: tuple[Any, ...]) -> None:
        waited_for = self._ready is not None and not self._ready.done()
        match message:
            case ("spawned", number, pid):
                self._pids[number] = pid
            case ("exited", number, code):
                self._pids.pop(number, None)
                self._on_exit(number, code)
            case ("ready",) if self._ready is not None and waited_for:
                self._ready.set_result(None)
            case ("failed", *fault) if self._ready is not None and waited_for:
                self._ready.set_exception(EnvFault(*fault))

    def _lose(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(EnvError("The process that loads the environments died; see its output above."))
            return
        self.kill()
        self._on_lost()
