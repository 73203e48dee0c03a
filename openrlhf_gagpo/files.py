"""Files that are whole at any moment, for a process that may be killed, and folders that one process writes to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

__all__ = ["LOCK", "hold", "write_atomic"]

LOCK = ".lock"
"""Name of the file by which a folder is held; it stays, and means nothing once its process has ended."""


def write_atomic(file: Path, text: str) -> None:
    """Write ``text`` to ``file``, completely or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def hold(folder: Path) -> TextIO:
    """Hold ``folder``, which is made if absent, until the returned file is closed or the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
