"""What can be shown below the paths that the user names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_gagpo.errors import ConfigError, RunFolderError
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.viewer.facts import EpisodeFile
from openrlhf_gagpo.viewer.records import RecordFile
from openrlhf_gagpo.viewer.stepfile import StepLines

__all__ = ["Part", "Source", "find_sources"]

_DEPTH = 3
_PASSED_OVER = {"checkpoints", "faults", "model", "node_modules"}
_ITERATION = re.compile(r"iter_(\d+)\.jsonl\.gz")
_RECORDS = ".jsonl.gz"
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Part:
    """One file of a source."""

    number: int
    """The iteration in a run, otherwise the position among the files, from 1."""
    path: Path

    def open(self) -> EpisodeFile:
        """Return the reader of its format."""
        with self.path.open("rb") as file:
            packed = file.read(2) == _GZIP
        return RecordFile(self.path) if packed or self.path.name.endswith(_RECORDS) else StepLines(self.path)


@dataclass(frozen=True)
class Source:
    """A run, a folder of recorded episodes, or one file."""

    key: str
    """Names it in addresses."""
    title: str
    path: Path
    is_run: bool = False

    @property
    def run(self) -> RunFolder | None:
        """The run folder, if it is one that can be read."""
        if not self.is_run:
            return None
        try:
            return RunFolder.open(self.path)
        except RunFolderError:
            return None

    def parts(self) -> list[Part]:
        """Return its files with episodes; those of a run may grow in number at any time."""
        if self.path.is_file():
            return [Part(1, self.path)]
        folder = self.path / "rollouts" if self.is_run else self.path
        files = sorted(_record_files(folder))
        iterations = [_ITERATION.fullmatch(file.name) for file in files]
        if all(iterations):
            return [Part(int(match[1]), file) for match, file in zip(iterations, files, strict=True) if match]
        return [Part(number, file) for number, file in enumerate(files, start=1)]


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Find all runs, folders of episodes and files at or below ``paths``, at most three folders deep.

    Raises:
        ConfigError: one of the paths does not exist, or nothing below it can be shown.
    """
    sources: dict[Path, Source] = {}
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path} does not exist; give run folders, results of evaluations or JSON lines")
        found = [path] if path.is_file() else list(_folders(path, _DEPTH))
        if not found:
            raise ConfigError(
                f"{path} holds no run and no recorded episodes; give run folders, results of evaluations or JSON lines"
            )
        for item in found:
            _add(sources, item, path)
    return list(sources.values())


def _add(sources: dict[Path, Source], item: Path, below: Path) -> None:
    resolved = item.resolve()
    if resolved in sources:
        return
    title = resolved.name
    if any(source.title == title for source in sources.values()):
        title = f"{resolved.parent.name}/{resolved.name}"
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.") or "source"
    taken = {source.key for source in sources.values()}
    key = next(key for n in range(1, len(taken) + 2) if (key := base if n == 1 else f"{base}-{n}") not in taken)
    sources[resolved] = Source(key, title, resolved, (item / "run.json").is_file())


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "run.json").is_file() or any(_record_files(folder, deep=False)):
        yield folder
        return
    below = _subfolders(folder)
    if any(item.name in ("episodes", "rollouts") and any(_record_files(item)) for item in below):
        yield folder
        return
    if depth:
        for item in below:
            yield from _folders(item, depth - 1)


def _record_files(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    """Yield the files of recorded episodes in a folder and, if ``deep``, in the folders inside it."""
    for item in _entries(folder):
        if item.name.endswith(_RECORDS) and not item.name.startswith(".") and item.is_file():
            yield Path(item.path)
        elif deep and item.is_dir() and not item.name.startswith("."):
            yield from _record_files(Path(item.path), deep=False)


def _subfolders(folder: Path) -> list[Path]:
    names = [item.name for item in _entries(folder) if item.is_dir() and not item.name.startswith(".")]
    return [folder / name for name in sorted(names) if name not in _PASSED_OVER]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
