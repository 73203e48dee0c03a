"""Numpy arrays and packed records on disk, checksummed and memory-mapped.

Mapped files are shared by all processes of a node through the page cache, so a large catalogue is held once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agent_envs.cache import locked
from agent_envs.errors import StoreError

__all__ = ["ArrayWriter", "Blob", "BlobWriter", "StoreError", "file_digest", "open_or_build"]

_META = "meta.json"
_CHUNK = 1 << 22


class BlobWriter:
    """Collects byte strings one after another in a file, so that they need not fit into memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._ends = array("q", [0])

    def add(self, record: bytes) -> None:
        """Append one record."""
        self._file.write(record)
        self._ends.append(self._ends[-1] + len(record))

    def finish(self) -> np.ndarray:
        """Close the file; returns the offsets (records + 1, int64)."""
        self._file.close()
        return np.array(self._ends, dtype=np.int64)


class ArrayWriter:
    """Writes a one-dimensional array block by block to a file of the form that ``open_or_build`` reads."""

    def __init__(self, path: Path, dtype: np.dtype[Any], length: int) -> None:
        self._dtype = dtype
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, block: np.ndarray) -> None:
        """Append a block; all blocks together must have the length that was told."""
        self._file.write(block.astype(self._dtype, copy=False).tobytes())

    def finish(self) -> None:
        """Close the file."""
        self._file.close()


class Blob:
    """Byte strings read from a mapped file by number."""

    def __init__(self, path: Path, offsets: np.ndarray) -> None:
        # An empty file cannot be mapped.
        size = path.stat().st_size
        self._data = memoryview(np.memmap(path, np.uint8, "r").data) if size else memoryview(b"")
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._data[int(self._offsets[number]) : int(self._offsets[number + 1])])


def open_or_build(
    folder: Path, build: Callable[[Path], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and notes stored in ``folder``; built first where they are missing or fail their checksums.

    ``build`` gets an empty folder to put further files into and returns arrays and notes (JSON); files there whose
    names end in ".npy" are further arrays. One process builds, others wait for it.

    Raises:
        StoreError: the folder cannot be written.
    """
    found = _read(folder)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            found = _read(folder)
            if found is None:
                _write(folder, build)
                found = _read(folder)
    except OSError as error:
        raise StoreError(
            f"the WebShop cache {folder} cannot be written ({error.strerror or error}); "
            f"set cache_dir to a folder with enough room"
        ) from error
    if found is None:
        raise StoreError(f"the WebShop cache {folder} does not read back as written; set cache_dir to another disk")
    return found


def file_digest(path: Path, notes: Path) -> str:
    """Hash of a file's content; kept under ``notes`` so that an unchanged (size, time) file is read once only.

    Raises:
        StoreError: ``notes`` cannot be written.
    """
    stat = path.stat()
    place = str(path.resolve())
    state = [place, stat.st_size, stat.st_mtime_ns]
    note = notes / f"{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:24]}.digest"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if known[:3] == state:
            return str(known[3])
    except (OSError, ValueError, TypeError, IndexError, KeyError):
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    try:
        notes.mkdir(parents=True, exist_ok=True)
        _replace(note, json.dumps([*state, digest]))
    except OSError as error:
        raise StoreError(
            f"the WebShop cache {notes} cannot be written ({error.strerror}); set cache_dir to another folder"
        ) from error
    return digest


def _read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """None where anything is missing or differs from its checksum."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        if any(_checksum(folder / name) != known for name, known in meta["files"].items()):
            return None
        arrays = {
            # The plain view indexes faster than numpy's memmap class.
            name.removesuffix(".npy"): np.asarray(np.load(folder / name, mmap_mode="r"))
            for name in meta["files"]
            if name.endswith(".npy")
        }
        return arrays, meta["notes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(folder: Path, build: Callable[[Path], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]) -> None:
    # A damaged copy, and what processes left that were killed while building; nobody else builds now.
    for left in (folder, *folder.parent.glob(f"{folder.name}.*")):
        if left.is_dir():
            shutil.rmtree(left)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        arrays, notes = build(scratch)
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array)
        files = {path.name: _checksum(path) for path in sorted(scratch.iterdir())}
        (scratch / _META).write_text(json.dumps({"files": files, "notes": notes}), encoding="utf-8")
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _checksum(path: Path) -> list[int]:
    """Size in bytes and CRC-32."""
    size = crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
    return [size, crc]


def _replace(path: Path, text: str) -> None:
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
