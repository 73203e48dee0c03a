"""Child processes that do not end when they are told to."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from openrlhf_gagpo.experiment import processes

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(600)"
)


class Stubborn:
    """A job with one command, which ignores SIGTERM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid = 0

    def next(self) -> Sequence[str]:
        return [sys.executable, "-c", _STUBBORN]

    def started(self, pid: int) -> None:
        self.pid = pid

        def interrupt() -> None:
            while "here" not in (self.folder / "stdout.txt").read_text():
                time.sleep(0.02)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()

    def ended(self, outcome: processes.Outcome) -> None:
        raise AssertionError("it goes on")


def test_a_child_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_END_S", 0.2)
    job = Stubborn(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        processes.run_jobs([job], 1, lambda _: None)
    assert not psutil.pid_exists(job.pid)
