"""Elements of a JSON list or object in a file, one by one and without holding the whole text.

They are what ``json.load`` makes of them. Streaming libraries refuse NaN and large numbers and change lone surrogates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from agent_envs.webshop.products import CatalogueError

__all__ = ["stream_list", "stream_object"]

_CHUNK_CHARS = 1 << 20
_LARGEST_ELEMENT_CHARS = 1 << 25
_NUMBER_TAIL = 3
_SPACES = " \t\r\n"


def stream_list(path: Path) -> Iterator[Any]:
    """Yield the elements of the list that a file holds.

    Raises:
        CatalogueError: the file cannot be read or holds no list; for a broken one only when that place is reached.
    """
    with _reading(path) as text:
        if text.peek() != "[":
            raise CatalogueError(f"{path} must hold one JSON list of products.")
        for _ in _places(text, "]"):
            yield text.value()


def stream_object(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the object that a file holds, in the file's order and with repeats.

    Raises:
        CatalogueError: the file cannot be read or holds no object; for a broken one only when that place is reached.
    """
    with _reading(path) as text:
        if text.peek() != "{":
            raise CatalogueError(f"{path} must hold one JSON object with product ids as its names.")
        for _ in _places(text, "}"):
            if text.peek() != '"':
                raise ValueError(f"expected a name in double quotes, not {text.peek()!r}")
            name = text.value()
            text.take(":")
            yield name, text.value()


def _places(text: _Text, closing: str) -> Iterator[None]:
    """Stop where each element begins; the caller reads it. The text must end after the last one."""
    text.take(text.peek())
    if text.peek() == closing:
        text.take(closing)
    else:
        while True:
            yield
            if text.peek() == closing:
                text.take(closing)
                break
            text.take(",")
    if text.peek():
        raise ValueError(f"expected nothing after the closing {closing!r}, not {text.peek()!r}")


class _Text:
    """A JSON text of which only the part that is being looked at is held."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._buffer):
                character = self._buffer[self._at]
                if character not in _SPACES:
                    return character
                self._at += 1
            if not self._read_on():
                return ""

    def take(self, character: str) -> None:
        """Step over ``character``, which has to be the next one."""
        found = self.peek()
        if found != character:
            raise ValueError(f"expected {character!r}, not {found!r}" if found else "it ends too early")
        self._at += 1

    def value(self) -> Any:
        """Read the value that comes next."""
        if not self.peek():
            raise ValueError("it ends too early")
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError:
                # Whether the value is broken or only incomplete shows when there is more of it.
                if len(self._buffer) - self._at > _LARGEST_ELEMENT_CHARS or not self._read_on():
                    raise
                continue
            # A number near the end of what was read may go on: of "1.5e-7" the part "1.5e-" is read as 1.5.
            if len(self._buffer) - end < _NUMBER_TAIL and self._read_on():
                continue
            self._at = end
            return value

    def _read_on(self) -> bool:
        """Hold more of the text; False, and nothing changes, where there is no more."""
        # A long value is decoded anew after each time, so that each time brings more.
        chunk = self._file.read(max(_CHUNK_CHARS, len(self._buffer) - self._at))
        if not chunk:
            return False
        self._buffer, self._at = self._buffer[self._at :] + chunk, 0
        return True


@contextmanager
def _reading(path: Path) -> Iterator[_Text]:
    try:
        # Some tools begin a file with a byte order mark, which is no JSON.
        with path.open(encoding="utf-8-sig") as file:
            yield _Text(file)
    except (OSError, ValueError, RecursionError) as error:
        raise CatalogueError(f"{path} cannot be read as JSON ({error}); generate or download it again.") from error
