"""The fork server of one pool: a small process that loads the environment once and forks a worker per request.

It runs in a clean interpreter of its own, so neither it nor its workers hold the trainer's modules, threads or locks,
and the trainer's ``__main__`` is never run again. The fork server of ``multiprocessing`` is not used because there is
only one for the whole process, it imports ``__main__``, and it stays alive as long as one worker hangs. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import io
import os
import pickle
import selectors
import signal
import socket
import sys
import traceback

from agent_envs import registry
from agent_envs.errors import EnvError
from agent_envs.workers import worker
from agent_envs.workers.wire import CONTROL_LIMIT, EnvSpec

__all__ = ["main"]

PR_SET_PDEATHSIG = 1
_REASON_CHARS = 4000
_TRACEBACK_CHARS = 8000
"""Characters of each that are sent; together they stay below ``CONTROL_LIMIT``."""


def main(control_fd: int, parent: int) -> None:
    """Serve the pool in process ``parent`` over a message socket until that socket closes.

    It receives an ``EnvSpec``, then ``("spawn", number)`` with the worker's socket attached, or ``("kill", number)``.
    It sends ``("ready",)`` or ``("failed", *arguments of EnvFault)``, then ``("spawned", number, pid)`` and
    ``("exited", number, exit code)``.
    """
    _die_with(parent)
    # The trainer handles Ctrl-C; children inherit this setting.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What engines print must not end up in the output of a command.
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Workers end without a last flush, so each line is flushed when it is printed.
        sys.stdout.reconfigure(line_buffering=True)
    control = socket.socket(fileno=control_fd)
    spec: EnvSpec = pickle.loads(control.recv(CONTROL_LIMIT))
    try:
        _prepare(spec)
    # SystemExit too, as in a worker.
    except (Exception, SystemExit) as error:
        refused = isinstance(error, EnvError | ValueError)
        reason = str(error) if refused else f"environment {spec.name!r} failed to load: {type(error).__name__}: {error}"
        details = traceback.format_exc()
        control.send(pickle.dumps(("failed", reason[:_REASON_CHARS], details[-_TRACEBACK_CHARS:], refused)))
        return
    # The garbage collector's marks would copy the pages that workers share with this process.
    gc.collect()
    gc.freeze()
    control.send(pickle.dumps(("ready",)))
    _Server(control, spec).run()


def _prepare(spec: EnvSpec) -> None:
    """Load the environment's class, check its options and give it the chance to load data that workers share."""
    for plugin in spec.plugins:
        registry.load_plugin(plugin)
    options, _ = registry.resolve(spec.name, spec.options, spec.max_steps)
    registry.check_options(spec.name, options)
    registry.get(spec.name).preload(**options)


class _Server:
    def __init__(self, control: socket.socket, spec: EnvSpec) -> None:
        self._control = control
        self._spec = spec
        self._pid = os.getpid()
        self._selector = selectors.DefaultSelector()
        self._pidfds: dict[int, int] = {}
        """Worker number -> descriptor of its process: readable once it ends, and safe when process ids are reused."""

    def run(self) -> None:
        self._selector.register(self._control, selectors.EVENT_READ)
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.fileobj is self._control:
                        if not self._obey():
                            return
                    else:
                        self._report(number=key.data)
        except (BrokenPipeError, ConnectionResetError):
            return  # The pool is gone, and the workers end with this process.

    def _obey(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, CONTROL_LIMIT, 1)
        if not message:
            return False
        command, number = pickle.loads(message)
        if command == "spawn":
            self._spawn(number, socket.socket(fileno=descriptors[0]))
        else:
            if number in self._pidfds:
                signal.pidfd_send_signal(self._pidfds[number], signal.SIGKILL)
            # At once, since a worker may take long to end.
            self._control.send(pickle.dumps(("killed", number)))
        return True

    def _spawn(self, number: int, connection: socket.socket) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            # Without memory or process ids there is one worker less, and the others go on.
            connection.close()
            sys.stderr.write(f"no environment worker could be started: {error}\n")
            self._control.send(pickle.dumps(("exited", number, 1)))
            return
        if pid == 0:
            self._become_worker(connection)
        connection.close()
        pidfd = os.pidfd_open(pid)
        self._pidfds[number] = pidfd
        self._selector.register(pidfd, selectors.EVENT_READ, data=number)
        self._control.send(pickle.dumps(("spawned", number, pid)))

    def _become_worker(self, connection: socket.socket) -> None:
        status = 1
        try:
            _die_with(self._pid)
            self._control.close()
            self._selector.close()
            for pidfd in self._pidfds.values():
                os.close(pidfd)
            worker.serve(connection, self._spec)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            # A worker must never return into the server's loop.
            os._exit(status)

    def _report(self, number: int) -> None:
        pidfd = self._pidfds.pop(number)
        self._selector.unregister(pidfd)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        assert result is not None  # It is None only for a call that does not wait.
        code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        self._control.send(pickle.dumps(("exited", number, code)))


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends for any reason, even if this process is busy."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)  # It ended before the call above.
