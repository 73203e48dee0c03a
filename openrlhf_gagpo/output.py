"""What libraries write to stdout and stderr, kept apart from what a command tells its user."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

from openrlhf_gagpo.errors import GagpoError

__all__ = ["LIBRARIES_LOG", "LibraryOutput"]

LIBRARIES_LOG = "libraries.log"
"""Name of the file in the folder of a run, an evaluation or a warm start."""

_STDOUT, _STDERR = 1, 2


class LibraryOutput:
    """A context in which all output of this process and of those that it starts goes to a file.

    The file descriptors themselves are redirected, because compiled code and child processes do not use Python's
    streams. Only ``terminal`` leads to where stdout led before. Until ``keep`` names the file, a temporary one is used;
    if an unexpected error leaves the context before that, its content is written to stderr, since it may say why. After
    that, an error is followed by the name of the file.
    """

    def __init__(self, *, apart: bool = True) -> None:
        """Prepare the context.

        Args:
            apart: False redirects nothing, for a user who wants to see everything.
        """
        self.terminal: IO[str] = sys.stdout
        self.path: Path | None = None
        self._apart = apart
        self._saved: dict[int, int] = {}
        self._held: BinaryIO | None = None

    def __enter__(self) -> LibraryOutput:
        if self._apart:
            _flush()
            self._saved = {descriptor: os.dup(descriptor) for descriptor in (_STDOUT, _STDERR)}
            if _descriptor(sys.stdout) == _STDOUT:
                self.terminal = open(os.dup(_STDOUT), "w", encoding=sys.stdout.encoding, errors="backslashreplace")
            self._held = tempfile.TemporaryFile()
            self._lead_to(self._held)
        return self

    def keep(self, path: Path) -> None:
        """Append what was written so far, and all that follows, to ``path``."""
        if self._held is None:
            return
        _flush()
        self._held.seek(0)
        with path.open("ab") as file:
            shutil.copyfileobj(self._held, file)
            file.flush()
            self._lead_to(file)
        self._held.close()
        self._held, self.path = None, path

    @property
    def wrote(self) -> bool:
        """Whether the kept file holds anything."""
        _flush()
        return self.path is not None and self.path.exists() and self.path.stat().st_size > 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._apart:
            return
        wrote = self.wrote
        if self.path is not None and self.path.exists() and not wrote:
            self.path.unlink()
        _flush()
        for descriptor, saved in self._saved.items():
            os.dup2(saved, descriptor)
            os.close(saved)
        if self.terminal is not sys.stdout:
            self.terminal.close()
        if wrote and isinstance(error, Exception):
            sys.stderr.write(f"what the libraries wrote is in {self.path}\n")
        if self._held is not None:
            if isinstance(error, Exception) and not isinstance(error, GagpoError):
                self._held.seek(0)
                sys.stderr.write(self._held.read().decode(errors="backslashreplace"))
            self._held.close()

    @staticmethod
    def _lead_to(file: BinaryIO) -> None:
        for descriptor in (_STDOUT, _STDERR):
            os.dup2(file.fileno(), descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _descriptor(stream: IO[str]) -> int | None:
    """Return the file descriptor of a stream; None for one in memory."""
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None
