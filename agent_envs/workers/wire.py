"""Messages between the pool and its processes: framed and pickled, over Unix sockets."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CONTROL_LIMIT",
    "FAULT",
    "OK",
    "READ_SIZE",
    "UNKNOWN_TASK",
    "WAITING",
    "EnvSpec",
    "FrameReader",
    "frame",
]

OK, FAULT, UNKNOWN_TASK, WAITING = range(4)
"""Kinds of a worker's reply; a request is sent as ``OK``. The reply to one that is ``WAITING`` follows later."""

READ_SIZE = 1 << 18
"""Bytes requested from a worker's socket at a time."""
CONTROL_LIMIT = 1 << 16
"""Largest message, in bytes, between the pool and its fork server; the socket type delivers messages whole."""

_HEADER = struct.Struct("!IQB")


@dataclass(frozen=True)
class EnvSpec:
    """Which environment a pool's processes run."""

    name: str
    options: Mapping[str, Any]
    plugins: tuple[str, ...]
    max_steps: int | None = None
    """As ``registry.make`` takes it."""


def frame(number: int, kind: int, payload: bytes) -> bytes:
    """Build one message; ``number`` matches a reply to its request."""
    return _HEADER.pack(len(payload), number, kind) + payload


class FrameReader:
    """Cuts a byte stream back into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Yield number, kind and payload of every message that ``data`` completes."""
        self._buffer += data
        messages = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            length, number, kind = _HEADER.unpack_from(self._buffer, start)
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append((number, kind, bytes(self._buffer[start + _HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return iter(messages)
