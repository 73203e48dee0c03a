"""Reading parts of a gzip file without decompressing all that lies before them."""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_gagpo.errors import EpisodeFileError

if TYPE_CHECKING:
    from zlib import _Decompress

__all__ = ["SeekableGzip"]

_CHUNK = 1 << 16
_SPACING = 1 << 21
_GZIP = 31
"""``wbits`` for a gzip header and trailer."""


@dataclass(frozen=True)
class _Point:
    """A place from which decompression can go on."""

    offset: int
    """In the decompressed text."""
    source: int
    """In the file."""
    state: _Decompress


class SeekableGzip:
    """A gzip file, of one or several members, whose decompressed bytes are addressed by offset.

    Every pass over the file keeps a copy of the decompressor's state each 2 MiB (about 45 KB of memory), and a later
    read starts from the nearest one.
    """

    def __init__(self, path: Path, spacing: int = _SPACING) -> None:
        self.path = path
        self._spacing = spacing
        self._points = [_Point(0, 0, zlib.decompressobj(_GZIP))]
        self._lock = threading.Lock()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield every line with the offset of its first byte.

        Raises:
            EpisodeFileError: the file is cut short, damaged or not compressed.
            OSError: the file cannot be read.
        """
        rest, start = b"", 0
        for _, data in self._chunks(0):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield start, line
                start += len(line) + 1
        if rest:
            yield start, rest

    def read(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each span (offset, size), in the given order; the errors are those of ``lines``."""
        found: dict[tuple[int, int], bytes] = {}
        for span in sorted(set(spans)):
            found[span] = self._read(*span)
        return [found[span] for span in spans]

    def _read(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        for start, data in self._chunks(offset):
            parts.append(data[max(0, offset - start) : max(0, offset + size - start)])
            if start + len(data) >= offset + size:
                break
        return b"".join(parts)

    def _chunks(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """Yield decompressed pieces with their offsets, from the last known point at or before ``offset``."""
        with self._lock:
            point = self._points[bisect_right(self._points, offset, key=lambda p: p.offset) - 1]
        state, at = point.state.copy(), point.offset
        with self.path.open("rb") as file:
            file.seek(point.source)
            while raw := file.read(_CHUNK):
                while raw:
                    if state.eof:
                        state = zlib.decompressobj(_GZIP)
                    try:
                        data = state.decompress(raw)
                    except zlib.error as error:
                        raise EpisodeFileError(
                            f"{self.path} is damaged or not gzip-compressed; write it again"
                        ) from error
                    raw = state.unused_data
                    yield at, data
                    at += len(data)
                self._keep(_Point(at, file.tell(), state))
        if not state.eof:
            raise EpisodeFileError(f"{self.path} is cut short; write it again")

    def _keep(self, point: _Point) -> None:
        with self._lock:
            if point.offset >= self._points[-1].offset + self._spacing:
                self._points.append(_Point(point.offset, point.source, point.state.copy()))
