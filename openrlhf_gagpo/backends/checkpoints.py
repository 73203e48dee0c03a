"""Checkpoint folders: written whole, synced, then named, then older ones removed; a damaged one is passed over."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.files import write_atomic
from openrlhf_gagpo.training.backend import Restored
from openrlhf_gagpo.training.settings import CheckpointSettings

__all__ = ["UNWRITTEN", "Write", "read_checkpoint", "write_checkpoint"]

UNWRITTEN = (OSError, RuntimeError, SafetensorError)
"""What a file that cannot be written is reported as; torch's own is a RuntimeError, also when the disk is full."""

Write = Callable[[Path], None]
"""Puts files into the folder that it is given."""

_TAG = re.compile(r"(global_step(\d+))(?:_hf)?")
_FILES = "files.json"
"""File of a checkpoint that lists the others with their bytes."""


def write_checkpoint(
    settings: CheckpointSettings, tag: str, write: Write | None, write_model: Write | None = None
) -> None:
    """Add the checkpoint ``tag`` (``global_step<iteration>``) to those of a run, and remove the oldest ones.

    A process or machine that dies at any moment leaves the former checkpoints or this one whole.

    Args:
        write: writes what a run is continued from; None for a checkpoint that consists of a model alone.
        write_model: writes a model for other programs, which is kept as long under the name ``<tag>_hf``.

    Raises:
        RunError: they cannot be written, for example because the disk is full; the former checkpoints are intact.
    """
    root = settings.path
    try:
        for left_behind in root.glob(".global_step*.partial"):
            shutil.rmtree(left_behind)
        if write_model is not None:
            _write_whole(_model(root, tag), write_model)
        if write is not None:
            _write_whole(root / tag, lambda folder: _write_listed(folder, write))
            write_atomic(root / "latest", tag)
    except UNWRITTEN as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RunError(
            f"the checkpoint {root / tag} cannot be written: {cause}; earlier ones are intact: make room and continue "
            "with --ckpt.load_enable"
        ) from error
    _rotate(settings, tag)


def read_checkpoint(root: Path, read: Callable[[Path], dict[str, Any]]) -> Restored | None:
    """Read the newest checkpoint of ``root`` that can be read; None if there is none at all.

    Args:
        read: restores everything from a folder and returns the loop's state; it may fail after a part of that.

    Raises:
        RunError: there are checkpoints, and none can be read.
    """
    found = [root / tag for tag in _newest_first(root) if (root / tag).is_dir()]
    unreadable: dict[str, str] = {}
    for folder in found:
        try:
            _check_files(folder)
            return Restored(read(folder), folder, unreadable)
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


def _model(root: Path, tag: str) -> Path:
    """Return the folder of a checkpoint's model, under OpenRLHF's name."""
    return root / f"{tag}_hf"


def _newest_first(root: Path) -> list[str]:
    """Return the tags of the checkpoints of ``root``; other files there are not ours."""
    tags = {match[1]: int(match[2]) for path in root.glob("global_step*") if (match := _TAG.fullmatch(path.name))}
    return sorted(tags, key=lambda tag: tags[tag], reverse=True)


def _write_whole(folder: Path, write: Write) -> None:
    """Make ``folder`` with what ``write`` puts into it; it gets its name when all of that is on disk."""
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        partial.mkdir(parents=True)
        write(partial)
        _sync(partial)
        # Only a checkpoint that could not be read is ever written again.
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(folder.parent)


def _write_listed(folder: Path, write: Write) -> None:
    """Add to what ``write`` puts into ``folder`` the list by which missing and shortened files are noticed."""
    write(folder)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / _FILES).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")


def _check_files(folder: Path) -> None:
    """Compare the files of a checkpoint with its list, before anything is restored from them.

    Raises:
        OSError: one is missing or has another size.
    """
    if not (folder / _FILES).is_file():
        return  # An earlier release wrote it.
    for name, size in json.loads((folder / _FILES).read_text(encoding="utf-8")).items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{name} is missing")
        if (present := path.stat().st_size) != size:
            raise OSError(f"{name} has {present} bytes, not {size}")


def _rotate(settings: CheckpointSettings, tag: str) -> None:
    """Remove the oldest checkpoints beyond the limits, but never ``tag``: newer ones may be those that are damaged."""
    root = settings.path
    tags = _newest_first(root)
    others = [other for other in tags if other != tag]
    kept = [tag, *others[: settings.max_num - 1]]
    while len(kept) > 1 and sum(_bytes(root, each) for each in kept) > settings.max_bytes:
        kept.pop()
    for old in reversed(tags):
        if old not in kept:
            # One that cannot be removed now is removed next time.
            shutil.rmtree(_model(root, old), ignore_errors=True)
            shutil.rmtree(root / old, ignore_errors=True)


def _bytes(root: Path, tag: str) -> int:
    folders = (root / tag, _model(root, tag))
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


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
