"""The numbers of finished runs: what each run is reduced to, and its curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_gagpo.credit.sets import Floats
from openrlhf_gagpo.experiment.jobs import RECORD, read_json
from openrlhf_gagpo.report.data import number
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import mean, standard_deviation

__all__ = ["AXES", "Run", "axis", "read_run", "reduced", "series"]

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """One finished run and its place in the comparison."""

    setting: str
    algorithm: str
    seed: int
    folder: Path
    rows: Rows
    """Rows of ``metrics.jsonl``."""
    evals: Rows
    values: Mapping[str, Any]
    """Its configuration."""
    commit: str
    cpu_seconds: float
    """All attempts together; NaN if nobody measured it."""
    side_by_side: int
    """Processes that compare ran at a time; 0 if unknown."""


def read_run(folder: Path, setting: str, algorithm: str, start: Path | None = None) -> Run:
    """Read a run.

    Args:
        start: run folder in which the model was evaluated that the run began with; it stands in for an evaluation
            before training if the run made none.

    Raises:
        RunFolderError: a folder is not one of a run, or is damaged.
    """
    run = RunFolder.open(folder)
    evals = run.evals()
    if start is not None and not any(row["iteration"] == 0 for row in evals):
        evals = [{**row, "iteration": 0} for row in RunFolder.open(start).evals()[-1:]] + evals
    info, record = run.info(), read_json(folder / RECORD)
    values = run.config().get("values", {})
    attempts = record.get("attempts", [])
    return Run(
        setting=setting,
        algorithm=algorithm,
        seed=int(values.get("train.seed", info.get("seed") or 0)),
        folder=folder,
        rows=run.metrics(),
        evals=evals,
        values=values,
        commit=str(info.get("git_commit") or ""),
        cpu_seconds=sum(attempt["cpu_seconds"] for attempt in attempts) if attempts else math.nan,
        side_by_side=int(record.get("side_by_side", 0)),
    )


def _of(row: Mapping[str, Any], name: str) -> float:
    return number(row.get(name))


AXES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "iterations": lambda row: 1.0,
    "environment steps": lambda row: _of(row, "rollout/steps"),
    "tokens": lambda row: (
        _of(row, "rollout/steps") * (_of(row, "rollout/prompt_tokens") + _of(row, "rollout/response_tokens"))
    ),
    "seconds": lambda row: _of(row, "time/iteration"),
}
"""What a training iteration adds on each horizontal axis; tokens are those of prompts and responses of training."""


def axis(run: Run, name: str) -> dict[int, float]:
    """Return the position on an axis after each iteration, 0 before the first."""
    places, total = {0: 0.0}, 0.0
    for row in run.rows:
        total += AXES[name](row)
        places[row["iteration"]] = total
    return places


def series(run: Run, metric: str, along: str) -> tuple[Floats, Floats]:
    """Return positions on an axis and finite values of a metric, by iteration."""
    places = axis(run, along)
    rows = run.evals if metric.startswith("eval/") else run.rows
    found = [(places[row["iteration"]], _of(row, metric)) for row in rows if row["iteration"] in places]
    kept = [(x, y) for x, y in found if math.isfinite(x) and math.isfinite(y)]
    return np.array([x for x, _ in kept], dtype=float), np.array([y for _, y in kept], dtype=float)


_CATEGORIES = ("eval/success/", "eval/greedy_success/")
_AVERAGED = (
    "rollout/episode_length",
    "policy/grad_norm",
    "policy/entropy",
    "credit/advantage_iqr",
    "credit/advantage_abs_gt1_share",
    "credit/state_group_size_mean",
    "credit/singleton_share",
)


def reduced(run: Run) -> dict[str, float]:
    """Reduce a run to single numbers by name; those that it did not log are left out.

    Success is there for each category of tasks too. ``start`` is its evaluation before the first iteration and
    ``final`` the last one, ``rise`` the latter minus the former; ``area`` is the mean over iterations of the success of
    the training episodes (area under the curve, per iteration); ``variation`` is a standard deviation over iterations
    divided by the mean.
    """
    numbers: dict[str, float] = {}
    evals = [row for row in run.evals if math.isfinite(_of(row, "eval/success"))]
    ends = [("start", row) for row in evals if row["iteration"] == 0] + [("final", row) for row in evals[-1:]]
    for word, row in ends:
        categories = (name for name in row if name.startswith(_CATEGORIES))
        for name in ("eval/success", "eval/greedy_success", "eval/episode_length", *categories):
            numbers[f"{word} {name}"] = _of(row, name)
    for name in [name.removeprefix("start ") for name in numbers if name.startswith("start ")]:
        numbers[f"rise {name}"] = numbers.get(f"final {name}", math.nan) - numbers[f"start {name}"]
    numbers["area rollout/success"] = mean(_finite(run.rows, "rollout/success"))
    for name in _AVERAGED:
        numbers[f"mean {name}"] = mean(_finite(run.rows, name))
    norms = _finite(run.rows, "policy/grad_norm")
    numbers["variation policy/grad_norm"] = standard_deviation(norms) / mean(norms) if mean(norms) else math.nan
    numbers["min credit/advantage_min"] = min(_finite(run.rows, "credit/advantage_min"), default=math.nan)
    numbers["max credit/advantage_max"] = max(_finite(run.rows, "credit/advantage_max"), default=math.nan)
    numbers["cpu seconds"] = run.cpu_seconds
    evaluating = _finite([*run.evals], "time/eval")
    numbers["wall seconds"] = sum(_finite(run.rows, "time/iteration")) + sum(evaluating)
    numbers |= {f"training {name}": max(axis(run, name).values()) for name in ("environment steps", "tokens")}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _finite(rows: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [value for row in rows if math.isfinite(value := _of(row, name))]
