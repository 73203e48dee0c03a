"""Checkpoint folders: written whole, synced, then named, then older ones removed; a damaged one is passed over."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.files import write_atomic
from openrlhf_gagpo.training.backend import Restored

__all__ = ["read_checkpoint", "write_checkpoint"]

_TAG = re.compile(r"global_step(\d+)")


def write_checkpoint(root: Path, tag: str, write: Callable[[Path], None], keep: int) -> None:
    """Add the checkpoint ``tag`` (``global_step<iteration>``) to ``root``, and leave the newest ``keep`` there.

    A process or machine that dies at any moment leaves the former checkpoints or this one whole.

    Args:
        write: puts the files into the folder that it is given.

    Raises:
        RunError: they cannot be written, for example because the disk is full; the former checkpoints are intact.
    """
    partial = root / f".{tag}.partial"
    try:
        for left_behind in root.glob(".global_step*.partial"):
            shutil.rmtree(left_behind)
        partial.mkdir(parents=True)
        write(partial)
        _sync(partial)
        # Only a checkpoint that could not be read is ever written again.
        shutil.rmtree(root / tag, ignore_errors=True)
        partial.replace(root / tag)
        _sync_folder(root)
        write_atomic(root / "latest", tag)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        cause = str(error).strip().splitlines()[0].rstrip(".")
        raise RunError(
            f"the checkpoint {root / tag} cannot be written: {cause}; earlier ones are intact: make room and continue "
            "with --ckpt.load_enable"
        ) from error
    for old in _newest_first(root)[keep:]:
        shutil.rmtree(old)


def read_checkpoint(root: Path, read: Callable[[Path], dict[str, Any]]) -> Restored | None:
    """Read the newest checkpoint of ``root`` that can be read; None if there is none at all.

    Args:
        read: restores everything from a folder and returns the loop's state; it may fail after a part of that.

    Raises:
        RunError: there are checkpoints, and none can be read.
    """
    found = _newest_first(root)
    unreadable: dict[str, str] = {}
    for folder in found:
        try:
            return Restored(read(folder), unreadable)
        # A damaged file fails in whatever way the library that reads it chose.
        except Exception as error:
            unreadable[str(folder)] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    if not unreadable:
        return None
    path, cause = next(iter(unreadable.items()))
    raise RunError(
        f"none of the {len(found)} checkpoints in {root} can be read, the newest, {path}, because of {cause}; start "
        "another run with --run_dir"
    )


def _newest_first(root: Path) -> list[Path]:
    """Return the checkpoints of ``root``; other files there are not ours."""
    steps = {path: match for path in root.glob("global_step*") if (match := _TAG.fullmatch(path.name))}
    return sorted(steps, key=lambda path: int(steps[path][1]), reverse=True)


def _sync(folder: Path) -> None:
    """Force all files in ``folder`` to disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
