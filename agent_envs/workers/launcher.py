"""The pool's side of its fork server: it starts the server, asks it for workers and learns when they end."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from agent_envs.errors import EnvError, EnvFault, ServerLost
from agent_envs.workers.wire import CONTROL_LIMIT, EnvSpec

__all__ = ["Launcher"]

ANSWER_S = 10.0
"""Time that a fork server gets to begin one thing that it is asked for, which takes milliseconds on an idle machine."""
_END_S = 1.0
"""Time that the event loop waits for a killed server to end, which one that waits for a dead file system does not."""


class Launcher:
    """One fork server. It calls ``on_exit(number, exit_code)`` when a worker ends, ``on_lost(how)`` when all is lost.

    A server reports every worker that it has started or told to end. One that owes a report and is silent for
    ``ANSWER_S`` hangs: it is killed, its workers end with it, and it is lost like one that died. Another one can be
    started then.

    The server ends with its pool's process or with the thread that started it, so start it in the event loop's thread.
    """

    def __init__(self, on_exit: Callable[[int, int], None], on_lost: Callable[[str], None]) -> None:
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._ready: asyncio.Future[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._serving = False
        """Whether the server has loaded the environment and has not been lost since."""
        self._pids: dict[int, int] = {}
        self._unsent: deque[tuple[bytes, tuple[socket.socket, ...]]] = deque()
        """Commands, with what goes along, for which the control socket has no room yet."""
        self._owed: set[tuple[str, int]] = set()
        """Reports that the server owes: their kinds, and the numbers of the workers."""
        self._owing_since = 0.0
        """When the server last reported something, or began to owe."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pids(self) -> list[int]:
        """Process ids of the server and its workers, for users and tests."""
        return [self._process.pid, *self._pids.values()] if self._process is not None else []

    async def start(self, spec: EnvSpec, timeout: float) -> None:
        """Start the server and wait until the environment is loaded.

        Raises ``EnvError`` if that fails; it is a ``ServerLost`` if the server died meanwhile.
        """
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
        """Ask for a worker. Requests may be sent to the returned socket at once.

        Raises ``ServerLost``, after ``on_lost``, if the server has died.
        """
        if self._control is None or not self._serving:
            raise ServerLost("No worker process could be started: the fork server is not running.")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._tell("spawn", number, theirs)
        if self._control is None:
            ours.close()
            raise ServerLost("No worker process could be started: the fork server died.")
        self._expect("spawned", number)
        return ours

    def awaits(self, number: int) -> bool:
        """Return whether the server has yet to start a worker that it was asked for."""
        return ("spawned", number) in self._owed

    def kill_worker(self, number: int) -> None:
        """Kill a worker, hung or not; do nothing if it has ended."""
        if self._control is None or (number not in self._pids and not self.awaits(number)):
            return
        self._tell("kill", number)
        if self._control is not None:
            self._expect("killed", number)

    def kill(self) -> None:
        """End the server and all its workers at once."""
        self._serving = False
        for _, descriptors in self._unsent:
            for descriptor in descriptors:
                descriptor.close()
        self._unsent.clear()
        if self._control is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._control)
            loop.remove_writer(self._control)
            self._control.close()
            self._control = None
        if self._process is not None:
            _end(self._process)
            self._process = None
        self._pids.clear()
        self._owed.clear()
        self._stop_watching()

    def _tell(self, command: str, number: int, *descriptors: socket.socket) -> None:
        """Send a command, now or when the server has read those before it; it may turn out that the server has died."""
        self._unsent.append((pickle.dumps((command, number)), descriptors))
        if len(self._unsent) == 1:
            self._send()

    def _send(self) -> None:
        while self._unsent and self._control is not None:
            message, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._control, [message], [descriptor.fileno() for descriptor in descriptors])
            except BlockingIOError:
                asyncio.get_running_loop().add_writer(self._control, self._send)
                return
            except (BrokenPipeError, ConnectionResetError):
                self._lose("died")
                return
            except OSError as error:
                # Such as too many open files on their way.
                self._lose(f"could not be reached ({error.strerror}) and was killed")
                return
            self._unsent.popleft()
            for descriptor in descriptors:
                descriptor.close()
        if self._control is not None:
            asyncio.get_running_loop().remove_writer(self._control)

    def _read(self) -> None:
        while self._control is not None:
            try:
                message = self._control.recv(CONTROL_LIMIT)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message = b""
            if not message:
                self._lose("died")
                return
            self._hear(pickle.loads(message))

    def _hear(self, message: tuple[Any, ...]) -> None:
        waited_for = self._ready is not None and not self._ready.done()
        self._owing_since = asyncio.get_running_loop().time()
        self._owed.discard(message[:2])
        match message:
            case ("spawned", number, pid):
                self._pids[number] = pid
            case ("exited", number, code):
                # Also of one that could not be started.
                self._owed.discard(("spawned", number))
                self._pids.pop(number, None)
                self._on_exit(number, code)
            case ("ready",) if self._ready is not None and waited_for:
                self._serving = True
                self._ready.set_result(None)
            case ("failed", *fault) if self._ready is not None and waited_for:
                self._ready.set_exception(EnvFault(*fault))
        if not self._owed:
            self._stop_watching()

    def _expect(self, report: str, number: int) -> None:
        if not self._owed:
            self._owing_since = asyncio.get_running_loop().time()
        self._owed.add((report, number))
        if self._timer is None:
            self._watch()

    def _watch(self) -> None:
        self._timer = asyncio.get_running_loop().call_at(self._owing_since + ANSWER_S, self._check_clock)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_clock(self) -> None:
        self._timer = None
        # Reports are read first, so that an event loop that was busy elsewhere is not mistaken for a hanging server.
        self._read()
        if not self._owed:
            return
        now, due = asyncio.get_running_loop().time(), self._owing_since + ANSWER_S
        if now < due:
            self._watch()
        elif now > due + ANSWER_S / 10:
            # What held up this process may have held up the server too.
            self._owing_since = now
            self._watch()
        else:
            self._lose(f"hung for {ANSWER_S:g} s and was killed")

    def _lose(self, how: str) -> None:
        served = self._serving
        self.kill()
        if served:
            self._on_lost(how)
        elif self._ready is not None and not self._ready.done():
            self._ready.set_exception(ServerLost("The process that loads the environments died; see its output above."))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        threading.Thread(target=process.wait, name="wait for a fork server", daemon=True).start()
