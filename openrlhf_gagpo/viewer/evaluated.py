"""What the folder of an evaluation says besides its episodes, read again only when its files have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from openrlhf_gagpo.errors import EvaluationError
from openrlhf_gagpo.evaluation.store import EvaluationFolder
from openrlhf_gagpo.report.data import number

__all__ = ["Evaluated", "Measure", "evaluated", "evaluated_stamp"]

_SUCCESS = "success"
_OTHERS = ("score", "return", "length")
_COUNTS = (
    "tasks", "samples", "format_invalid_share", "inadmissible_share", "length_capped_share", "truncated_share",
    "prompts_too_long", "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "sample_seconds",
)  # fmt: skip
_Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Measure:
    """One mean over tasks with its 95 % interval; NaN for an end that is not known."""

    name: str
    mean: float
    low: float
    high: float
    is_share: bool
    tasks: int | None = None


@dataclass(frozen=True)
class Evaluated:
    """The protocol of an evaluation, and its numbers once they were written."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    sessions: Sequence[Mapping[str, Any]] = ()
    prompt: str = ""
    label: str = ""
    """The policy in a few words."""
    numbers: Mapping[str, Any] | None = None
    problem: str = ""
    """Why the files cannot be read, or ""."""

    @property
    def state(self) -> str:
        """Whether there is a result; what has none is being played or waits to be continued."""
        if self.problem:
            return "unreadable"
        return "unfinished" if self.numbers is None else "finished"

    @property
    def samples(self) -> int:
        """Samples that a whole evaluation has."""
        return int(number(self.settings.get("tasks")) * number(self.settings.get("samples"))) if self.settings else 0

    @property
    def policy(self) -> str:
        """The policy, from the protocol as long as there is no result."""
        options = self.settings.get("policy_options") or {}
        return self.label or str(options.get("model") or self.settings.get("policy", ""))

    @property
    def success(self) -> Measure | None:
        """Success over all tasks; None without a result."""
        return _measure(_SUCCESS, self.numbers) if self.numbers is not None else None

    @property
    def measures(self) -> list[Measure]:
        """Success, pass@k, success per category, and the other means; none without a result."""
        if self.success is None or self.numbers is None:
            return []
        chances: Mapping[str, Any] = self.numbers.get("pass_at") or {}
        categories: Mapping[str, Any] = self.numbers.get("categories") or {}
        return [
            self.success,
            *(_measure(k, chances, f"pass@{k}") for k in chances if k != "1"),
            *(_measure(_SUCCESS, entry, f"{_SUCCESS}, {name}") for name, entry in categories.items()),
            *(_measure(name, self.numbers) for name in _OTHERS),
        ]

    @property
    def counts(self) -> list[tuple[str, str]]:
        """The other numbers, with labels."""
        found = self.numbers or {}
        counts = [(name.replace("_", " "), _short(found[name])) for name in _COUNTS if found.get(name) is not None]
        counts += [(f"faulted at the {where}", str(count)) for where, count in (found.get("faulted") or {}).items()]
        if cost := found.get("cost"):
            counts.append(("cost", f"{_short(cost['total'])} {cost['currency']}"))
        if shares := found.get("success_by_trial"):
            counts.append(("success within 1, 2, ... trials", ", ".join(map(_short, shares))))
        return counts

    @property
    def row(self) -> dict[str, Any]:
        """The result as a row of a run's ``eval.jsonl``; empty without one."""
        success = self.success
        if success is None:
            return {}
        return {
            "iteration": 0,
            "split": self.settings.get("split", ""),
            "eval/success": success.mean,
            "eval/success_low": success.low,
            "eval/success_high": success.high,
            "eval/tasks": success.tasks,
        }


def evaluated(folder: EvaluationFolder) -> Evaluated:
    """Return what is there by now; never raises for a damaged folder."""
    return _read(folder.path, evaluated_stamp(folder))


def evaluated_stamp(folder: EvaluationFolder) -> _Stamp:
    """Return size and time of change of the files."""
    found = []
    for path in (folder.protocol_path, folder.result_path):
        try:
            stat = path.stat()
            found.append((stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append((-1, 0))
    return tuple(found)


@lru_cache(maxsize=256)
def _read(path: Path, stamp: _Stamp) -> Evaluated:
    folder = EvaluationFolder(path)
    try:
        protocol = folder.protocol()
        result = folder.result() if folder.result_path.exists() else {}
        prompt = folder.prompt_path.read_text(encoding="utf-8")
    except (EvaluationError, OSError, ValueError) as error:
        return Evaluated(problem=str(error))
    return Evaluated(
        settings=protocol["settings"],
        sessions=protocol["sessions"],
        prompt=prompt,
        label=str(result.get("label", "")),
        numbers=result.get("numbers"),
    )


def _measure(name: str, numbers: Mapping[str, Any], title: str = "") -> Measure:
    """Return a measure by its name in ``result.json``, which an older release may not have written."""
    entry: Mapping[str, Any] = numbers.get(name) or {}
    return Measure(
        name=title or name,
        mean=number(entry.get("mean")),
        low=number(entry.get("low")),
        high=number(entry.get("high")),
        is_share=name not in _OTHERS,
        tasks=numbers.get("tasks"),
    )


def _short(value: float) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
