"""The data of a report, read from a run folder; any of it may be missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import wilson_interval

__all__ = [
    "CategoryRate",
    "Evaluation",
    "Points",
    "Setting",
    "config_table",
    "evaluations",
    "points",
    "seconds_between",
    "value_table",
]

_CATEGORY = "eval/success/"


@dataclass(frozen=True)
class Points:
    """One metric over iterations; NaN where it was not finite."""

    x: np.ndarray
    y: np.ndarray

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not bool(np.isfinite(self.y).any())

    @property
    def zero(self) -> bool:
        """Whether all values are 0."""
        return not self.empty and not bool(self.y[np.isfinite(self.y)].any())


@dataclass(frozen=True)
class Setting:
    """One configuration value and its origin ("" when unknown)."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class CategoryRate:
    """Success on the tasks of one category."""

    success: float
    low: float
    high: float
    """95 % interval; NaN when the number of episodes is unknown."""
    episodes: int | None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one split."""

    iteration: int
    split: str
    success: float
    low: float
    high: float
    """95 % interval; NaN when the number of tasks is unknown."""
    tasks: int | None
    categories: dict[str, CategoryRate] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)
    greedy: CategoryRate | None = None
    """Success at temperature 0; None if it was not measured."""


def number(value: object) -> float:
    """Return a logged value as float; NaN for ``null``, a missing value and anything that is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def points(rows: Iterable[Mapping[str, Any]], name: str) -> Points:
    """Return one metric of the rows that have it, by iteration; the last row wins if an iteration occurs twice."""
    by_iteration = {row["iteration"]: number(row[name]) for row in rows if name in row}
    x = sorted(by_iteration)
    y = np.array([by_iteration[i] for i in x], dtype=float)
    return Points(np.array(x, dtype=float), np.where(np.isfinite(y), y, np.nan))


def evaluations(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Evaluation]]:
    """Return evaluations by split, each in order of iterations; those without a success rate are left out."""
    latest = {(str(row.get("split", "")), row["iteration"]): row for row in rows}
    result: dict[str, list[Evaluation]] = {}
    for (split, _), row in sorted(latest.items()):
        if math.isfinite(number(row.get("eval/success"))):
            result.setdefault(split, []).append(_evaluation(row, split))
    return result


def _evaluation(row: Mapping[str, Any], split: str) -> Evaluation:
    names = [name.removeprefix(_CATEGORY) for name in row if name.startswith(_CATEGORY)]
    overall, categories = _rate(row, ""), {name: _rate(row, f"/{name}") for name in names}
    greedy = _rate(row, "", "greedy_") if math.isfinite(number(row.get("eval/greedy_success"))) else None
    return Evaluation(
        row["iteration"], split, overall.success, overall.low, overall.high, overall.episodes, categories, row, greedy
    )


def _rate(row: Mapping[str, Any], suffix: str, kind: str = "") -> CategoryRate:
    """Return a success rate with its interval, which older rows lack.

    Args:
        suffix: "" or "/<category>".
        kind: "" for sampled episodes, "greedy_" for greedy ones.
    """
    head = f"eval/{kind}"
    success, count = number(row[f"{head}success{suffix}"]), _count(row.get(f"{head}tasks{suffix}"))
    low, high = number(row.get(f"{head}success_low{suffix}")), number(row.get(f"{head}success_high{suffix}"))
    if count is not None and math.isfinite(success) and not (math.isfinite(low) and math.isfinite(high)):
        low, high = wilson_interval(min(count, round(success * count)), count)
    return CategoryRate(success, low, high, count)


def _count(value: object) -> int | None:
    as_float = number(value)
    return int(as_float) if math.isfinite(as_float) else None


def config_table(run: RunFolder) -> list[Setting]:
    """Return the configuration as dotted names, in file order."""
    config = run.config()
    values = config.get("values", config)
    origins = config.get("origins", {})
    origins = _flatten(origins) if isinstance(origins, Mapping) else {}
    flat = _flatten({k: v for k, v in values.items() if values is not config or k != "origins"})
    return [Setting(name, _text(value), _origin(name, origins)) for name, value in flat.items()]


def value_table(values: Mapping[str, Any]) -> list[Setting]:
    """Return values of unknown origin as dotted names, in their order."""
    return [Setting(name, _text(value), "") for name, value in _flatten(values).items()]


def _origin(name: str, origins: Mapping[str, Any]) -> str:
    """Return the origin of a value, or of the mapping that contains it (``env.options`` for ``env.options.size``)."""
    while name not in origins and "." in name:
        name = name.rpartition(".")[0]
    return str(origins.get(name, ""))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)


def seconds_between(info: Mapping[str, Any], start: object, end: object) -> float:
    """Return the seconds between two recorded moments; 0 if one is missing, or if the run was continued."""
    if not (isinstance(start, str) and isinstance(end, str)) or info.get("resumed"):
        return 0.0
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
