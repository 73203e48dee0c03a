"""Where environments keep what they work out once, and how processes take turns at it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["default_cache", "locked"]

_POLL_S = 0.01


def default_cache(env: str) -> Path:
    """Folder of an environment in the user's cache: ``gagpo/<env>`` under ``XDG_CACHE_HOME`` or ``~/.cache``.

    Raises ``OSError`` where there is no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / f"gagpo/{env}"
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder", "~/.cache") from error


@contextmanager
def locked(path: Path, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` (made if missing); the system lets go of it when its holder dies.

    Raises ``TimeoutError`` when another process holds it for more than ``timeout`` seconds (None: wait for ever).
    """
    with path.open("w") as file:
        if timeout is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _poll(file, path, time.monotonic() + timeout)
        yield


def _poll(file: IO[str], path: Path, deadline: float) -> None:
    # The system call has no time-out of its own.
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock", str(path)) from None
            time.sleep(_POLL_S)
