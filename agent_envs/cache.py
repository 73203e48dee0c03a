"""Cache folders for results that environments compute once, and the lock that keeps processes from colliding there."""

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
    """Return an environment's folder in the user's cache: ``gagpo/<env>`` under ``XDG_CACHE_HOME`` or ``~/.cache``.

    Raises ``OSError`` if the user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / f"gagpo/{env}"
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, "this user has no home folder", "~/.cache") from error


@contextmanager
def locked(path: Path, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` (created if missing); the system releases it when its holder dies.

    Raises ``TimeoutError`` if another process holds it for more than ``timeout`` seconds (None: wait without limit).
    """
    with path.open("w") as file:
        if timeout is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _poll(file, path, time.monotonic() + timeout)
        yield


def _poll(file: IO[str], path: Path, deadline: float) -> None:
    # The blocking system call has no time-out.
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock", str(path)) from None
            time.sleep(_POLL_S)
