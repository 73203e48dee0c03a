"""What a source has logged, read again only when its files have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from openrlhf_gagpo.errors import RunFolderError
from openrlhf_gagpo.report.data import Evaluation, evaluations, seconds_between
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.viewer.curves import RunRows
from openrlhf_gagpo.viewer.evaluated import Evaluated, evaluated, evaluated_stamp
from openrlhf_gagpo.viewer.sources import Source

__all__ = ["Logged", "logged", "logged_stamp"]

_FILES = ("run.json", "metrics.jsonl", "eval.jsonl")
_Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Logged:
    """The logs of a source; empty for records alone, and without metrics for an evaluation."""

    info: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[dict[str, Any]] = ()
    evals: Sequence[dict[str, Any]] = ()
    problem: str = ""
    """Why they cannot be read, or ""."""

    @property
    def state(self) -> str:
        """State of the run."""
        return "unreadable" if self.problem else str(self.info.get("state", "recorded"))

    @property
    def iterations(self) -> int:
        """Iterations that were logged."""
        return max((row["iteration"] for row in self.metrics), default=0)

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations by split, then iteration."""
        return [item for found in evaluations(self.evals).values() for item in found]

    def rows(self, title: str, color: int) -> RunRows:
        """Return the rows for drawing."""
        return RunRows(title, color, self.metrics, self.evals, self._started_s)

    @property
    def _started_s(self) -> float:
        """Seconds that the run needed to get ready; 0 where they are not known, as in a run that was continued."""
        return seconds_between(self.info, self.info.get("started"), (self.info.get("backend") or {}).get("ready_at"))


def logged(source: Source) -> Logged:
    """Return what a source has logged by now; never raises for a damaged run."""
    if source.evaluation is not None:
        return _of_evaluation(evaluated(source.evaluation))
    return _read(source.path, logged_stamp(source)) if source.is_run else Logged()


def logged_stamp(source: Source) -> _Stamp:
    """Return size and time of change of the files of logs."""
    if source.evaluation is not None:
        return evaluated_stamp(source.evaluation)
    if not source.is_run:
        return ()
    found = []
    for name in _FILES:
        try:
            stat = (source.path / name).stat()
            found.append((stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append((-1, 0))
    return tuple(found)


@lru_cache(maxsize=256)
def _read(path: Path, stamp: _Stamp) -> Logged:
    try:
        run = RunFolder.open(path)
        return Logged(run.info(), run.metrics(), run.evals())
    except (RunFolderError, OSError) as error:
        return Logged(problem=str(error))


def _of_evaluation(found: Evaluated) -> Logged:
    return Logged({"state": found.state}, evals=[found.row] if found.row else [], problem=found.problem)
