"""Child processes side by side: none outlives this process, and each is measured by itself."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["Job", "Outcome", "run_jobs"]

_PR_SET_PDEATHSIG = 1
_END_S = 30.0
"""Time in which a child that is told to has to end."""
_TAIL = 2000
"""Characters of a child's error output that are kept in its record."""


@dataclass(frozen=True)
class Outcome:
    """How one command of a job ended."""

    exit_status: int
    """As a shell gives it: 128 + the signal's number after a signal."""
    wall_seconds: float
    cpu_seconds: float
    """User and system time of the command and of the processes that it waited for."""
    stderr: str
    """The end of its error output if it failed."""


class Job(Protocol):
    """A sequence of commands, each chosen when the one before has ended."""

    @property
    def folder(self) -> Path:
        """Where ``stdout.txt`` and ``stderr.txt`` go; it exists once ``next`` has returned a command."""

    def next(self) -> Sequence[str] | None:
        """Return the next command, or None when the job is done."""

    def started(self, pid: int) -> None:
        """Called when the command runs."""

    def ended(self, outcome: Outcome) -> None:
        """Called when the command has ended."""


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    began: float


def run_jobs(jobs: Sequence[Job], limit: int, on_done: Callable[[Job], None]) -> None:
    """Run jobs in order, at most ``limit`` commands at a time; ``on_done`` is called with each finished job.

    When this process dies, even by SIGKILL, the kernel kills the children. After an interrupt they are asked to end,
    and killed if they take too long.
    """
    waiting, running = list(jobs), dict[int, _Child]()
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                _advance(waiting.pop(0), running, on_done)
            if running:
                pid, status, usage = os.wait4(-1, 0)
                if child := running.pop(pid, None):
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    child.job.ended(
                        Outcome(
                            exit_status=_shell_status(child.process.returncode),
                            wall_seconds=time.monotonic() - child.began,
                            cpu_seconds=usage.ru_utime + usage.ru_stime,
                            # What a command that did its work warned of is in the file alone.
                            stderr=_tail(child.job.folder / "stderr.txt") if status else "",
                        )
                    )
                    _advance(child.job, running, on_done)
    finally:
        for child in running.values():
            child.process.terminate()
        for child in running.values():
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(timeout=_END_S)
            child.process.kill()
            child.process.wait()


def _advance(job: Job, running: dict[int, _Child], on_done: Callable[[Job], None]) -> None:
    command = job.next()
    if command is None:
        on_done(job)
        return
    parent = os.getpid()
    with (job.folder / "stdout.txt").open("ab") as out, (job.folder / "stderr.txt").open("wb") as errors:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, preexec_fn=lambda: _die_with(parent)
        )
    running[process.pid] = _Child(job, process, began)
    job.started(process.pid)


_LIBC = ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this new process when ``parent`` dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # It died before the request.
        os._exit(1)


def _shell_status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _tail(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")[-_TAIL:] if file.is_file() else ""
