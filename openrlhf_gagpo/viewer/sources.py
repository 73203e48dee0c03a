"""What can be shown below the paths that the user names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openrlhf_gagpo.errors import ConfigError, RunFolderError
from openrlhf_gagpo.evaluation.store import EvaluationFolder, is_evaluation
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.viewer.facts import EpisodeFacts, EpisodeFile
from openrlhf_gagpo.viewer.records import RecordFile
from openrlhf_gagpo.viewer.samplefile import SampleFile
from openrlhf_gagpo.viewer.stepfile import StepLines

__all__ = ["Kind", "Part", "Source", "find_sources"]

_DEPTH = 3
_PASSED_OVER = {"checkpoints", "faults", "model", "node_modules"}
_ITERATION = re.compile(r"iter_(\d+)\.jsonl\.gz")
_RECORDS = ".jsonl.gz"
_GZIP = b"\x1f\x8b"

Kind = Literal["run", "evaluation", "records"]


@dataclass(frozen=True)
class Part:
    """One file of a source."""

    number: int
    """The iteration in a run, otherwise the position among the files, from 1."""
    path: Path

    def open(self, known: Sequence[EpisodeFacts] = ()) -> EpisodeFile:
        """Return the reader of its format.

        Args:
            known: the facts of the file before it changed; of use where files grow.
        """
        if _is_samples(self.path):
            return SampleFile(self.path, known)
        with self.path.open("rb") as file:
            packed = file.read(2) == _GZIP
        return RecordFile(self.path) if packed or self.path.name.endswith(_RECORDS) else StepLines(self.path)


@dataclass(frozen=True)
class Source:
    """A run, an evaluation, a folder of recorded episodes, or one file."""

    key: str
    """Names it in addresses."""
    title: str
    path: Path
    kind: Kind = "records"

    @property
    def is_run(self) -> bool:
        """Whether it is a run folder, if perhaps a damaged one."""
        return self.kind == "run"

    @property
    def evaluation(self) -> EvaluationFolder | None:
        """The folder of the evaluation, if it is one."""
        return EvaluationFolder(self.path) if self.kind == "evaluation" else None

    @property
    def part_word(self) -> str:
        """What one of its files is called; "" if there is never more than one."""
        return {"run": "iteration", "evaluation": "", "records": "file"}[self.kind]

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
        if self.evaluation is not None:
            return [Part(1, self.evaluation.samples_path)]
        if self.path.is_file():
            return [Part(1, self.path)]
        folder = self.path / "rollouts" if self.is_run else self.path
        files = sorted(_record_files(folder))
        iterations = [_ITERATION.fullmatch(file.name) for file in files]
        if all(iterations):
            return [Part(int(match[1]), file) for match, file in zip(iterations, files, strict=True) if match]
        return [Part(number, file) for number, file in enumerate(files, start=1)]


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Find all runs, evaluations, folders of episodes and files at or below ``paths``, at most three folders deep.

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
            # The file of an evaluation stands for its folder, which says more.
            _add(sources, item.parent if _is_samples(item) else item)
    return list(sources.values())


def _add(sources: dict[Path, Source], item: Path) -> None:
    resolved = item.resolve()
    if resolved in sources:
        return
    title = resolved.name
    if any(source.title == title for source in sources.values()):
        title = f"{resolved.parent.name}/{resolved.name}"
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.") or "source"
    taken = {source.key for source in sources.values()}
    key = next(key for n in range(1, len(taken) + 2) if (key := base if n == 1 else f"{base}-{n}") not in taken)
    sources[resolved] = Source(key, title, resolved, _kind(resolved))


def _kind(path: Path) -> Kind:
    if (path / "run.json").is_file():
        return "run"
    return "evaluation" if is_evaluation(path) else "records"


def _is_samples(path: Path) -> bool:
    return path == EvaluationFolder(path.parent).samples_path and is_evaluation(path.parent)


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    if _kind(folder) != "records" or any(_record_files(folder, deep=False)):
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
