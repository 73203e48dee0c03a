"""Passages in a file of JSON lines, which is mapped into memory so that all processes of a machine share it."""

from __future__ import annotations

import hashlib
import json
import mmap
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agent_envs.errors import EnvError

__all__ = ["Corpus", "CorpusTables", "Passage", "read_passages"]

_OFFSETS, _HASHES, _NUMBERS = "offsets.npy", "id_hashes.npy", "id_numbers.npy"


class Passage(NamedTuple):
    """One line of a corpus."""

    id: str
    contents: str
    """The title in quotes, a line break, and the text."""


def read_passages(path: Path) -> Iterator[tuple[bytes, Passage | None]]:
    """Yield each line as it is and the passage in it, None for a blank line.

    Raises ``EnvError`` for a line that is not a passage.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield line, _parsed(line, f"{path}, line {number}") if line.strip() else None
    except OSError as error:
        raise EnvError(f"the corpus {path} cannot be read ({error.strerror}); name a folder with a corpus") from error


def _parsed(line: bytes, place: str) -> Passage:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise EnvError(f"{place}, is not a JSON object; a corpus has one passage a line")
    name, contents = entry.get("id"), entry.get("contents")
    if contents is None and isinstance(entry.get("text"), str):
        contents = f'"{entry.get("title", "")}"\n{entry["text"]}'
    if isinstance(name, bool) or not isinstance(name, str | int) or not isinstance(contents, str):
        raise EnvError(f"{place}, has no id and contents; a passage needs both")
    # A lone surrogate, which JSON can spell, could be neither indexed nor encoded for a model.
    return Passage(str(name), contents.encode("utf-8", "replace").decode())


class CorpusTables:
    """Where the lines of a corpus begin, and which line has which id; filled line by line, then saved."""

    def __init__(self) -> None:
        self._starts = array("q", [0])
        self._hashes = array("Q")
        self._end = 0

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, line: bytes, passage: Passage | None) -> None:
        """Append the next line as ``read_passages`` yields it."""
        self._end += len(line)
        if passage is None:
            # A blank line belongs to the line before it; before the first one it is left out.
            self._starts[-1] = self._end
            return
        self._starts.append(self._end)
        self._hashes.append(_hash(passage.id))

    def save(self, folder: Path) -> None:
        """Write the tables to files. Raises ``OSError``."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        np.save(folder / _OFFSETS, np.frombuffer(self._starts, dtype=np.int64))
        np.save(folder / _HASHES, hashes[order])
        np.save(folder / _NUMBERS, order.astype(np.int64))


class Corpus:
    """The passages of ``path`` by number and by id, with the tables that were saved in ``folder``.

    Raises:
        EnvError: a file cannot be read, or two passages have the same id.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            # The plain view indexes faster than numpy's class for mapped arrays.
            self._starts, self._hashes, self._numbers = (
                np.asarray(np.load(folder / name, mmap_mode="r")) for name in (_OFFSETS, _HASHES, _NUMBERS)
            )
        except (OSError, ValueError) as error:
            raise EnvError(f"the corpus {path} cannot be opened with its index {folder} ({error})") from error

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Passage:
        line = self._data[int(self._starts[number]) : int(self._starts[number + 1])]
        return _parsed(line, f"{self.path}, passage {number}")

    def find(self, name: str) -> Passage:
        """Return the passage with this id. Raises ``EnvError`` if there is none."""
        key = np.uint64(_hash(name))
        place = int(np.searchsorted(self._hashes, key))
        while place < len(self) and self._hashes[place] == key:
            passage = self[int(self._numbers[place])]
            if passage.id == name:
                return passage
            place += 1
        raise EnvError(f"{self.path} has no passage {name!r}; the questions belong to another corpus")

    def check_ids(self) -> None:
        """Raise ``EnvError`` if two passages have the same id."""
        for place in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]):
            first, second = (self[int(self._numbers[place + more])].id for more in (0, 1))
            if first == second:
                raise EnvError(f"{self.path} has two passages with the id {first!r}; ids must differ")


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
