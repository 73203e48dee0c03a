"""A comparison in one small file, from which its report can be made again: ``runs.jsonl.gz``."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.experiment.cells import OWN
from openrlhf_gagpo.experiment.results import Run

__all__ = ["ARCHIVE", "Archive", "read_archive", "write_archive"]

ARCHIVE = "runs.jsonl.gz"
_FORMAT = 1
_DIGITS = 6


@dataclass(frozen=True)
class Archive:
    """Finished runs and what the report says about them besides their numbers."""

    runs: Sequence[Run]
    baseline: str
    primary: str
    """Metric of evaluations whose last value decides."""
    tuning: Mapping[str, Any]
    """Content of ``tuning.json``; empty without a tuning stage."""
    failed: Sequence[str]
    """Cells without a result."""


def write_archive(file: Path, archive: Archive) -> None:
    """Write a line on the comparison and one for each run: configuration, commit, evaluations, metrics.

    Numbers keep 6 significant digits. The bytes depend on the content alone.
    """
    head = {name: getattr(archive, name) for name in ("baseline", "primary", "tuning", "failed")}
    lines = [{"format": _FORMAT, **head}]
    lines += [_line(run) for run in archive.runs]
    text = "".join(json.dumps(_rounded(line), separators=(",", ":")) + "\n" for line in lines)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_archive(file: Path) -> Archive:
    """Read what ``write_archive`` wrote.

    Raises:
        ConfigError: the file cannot be read, or is not such a file.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            head, *lines = map(json.loads, stream)
        if head["format"] != _FORMAT:
            raise ConfigError(f"{file} has format {head['format']}; this release reads format {_FORMAT}")
        names = ("baseline", "primary", "tuning", "failed")
        return Archive([_run(line) for line in lines], **{name: head[name] for name in names})
    except OSError as error:
        raise ConfigError(f"{file} cannot be read as an archive of a comparison: {error}") from None
    except (EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is no archive of a comparison, or is damaged ({error!r}); compare writes one as {ARCHIVE}"
        ) from None


_FIELDS = tuple(field.name for field in dataclasses.fields(Run))


def _line(run: Run) -> dict[str, Any]:
    """Return the fields of a run without the folders of the machine that it ran on."""
    values = {name: value for name, value in run.values.items() if name not in OWN}
    return {name: getattr(run, name) for name in _FIELDS} | {"folder": run.folder.name, "values": values}


def _run(line: dict[str, Any]) -> Run:
    seconds = line["cpu_seconds"]
    changed = {"folder": Path(line["folder"]), "cpu_seconds": math.nan if seconds is None else seconds}
    return Run(**{name: line[name] for name in _FIELDS} | changed)


def _rounded(value: Any) -> Any:
    """Round numbers; those that are not finite become null, as a metric without a value is in a run folder."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value
