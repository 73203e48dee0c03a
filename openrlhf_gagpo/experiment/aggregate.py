"""Runs to tables: every number over seeds, differences to the baseline, and what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.experiment.cells import SHARED, differing
from openrlhf_gagpo.experiment.results import Run, reduced
from openrlhf_gagpo.stats import (
    Estimate,
    bootstrap_interval,
    holm,
    mean_interval,
    paired_test,
    pairs_for_power,
    standard_deviation,
)

__all__ = ["Comparison", "Difference", "Summary", "aggregate", "label_runs"]

_TESTED = ("final eval/success", "final eval/greedy_success", "area rollout/success")
"""Numbers whose differences to the baseline are tested, besides the primary one."""


@dataclass(frozen=True)
class Summary:
    """One number of one algorithm in one setting, over seeds."""

    setting: str
    algorithm: str
    metric: str
    by_seed: Mapping[int, float]
    t: Estimate
    """Mean with its 95 % t interval."""
    bootstrap: Estimate
    spread: float
    """Standard deviation over seeds; NaN with one."""


@dataclass(frozen=True)
class Difference:
    """An algorithm minus the baseline of its setting, over the seeds that both have."""

    setting: str
    algorithm: str
    baseline: str
    metric: str
    t: Estimate
    bootstrap: Estimate
    spread: float
    p_value: float
    corrected: float
    """After Holm's correction over the algorithms of the setting."""
    pairs: int | None
    """Seeds with which a difference like this would be found with 80 % power; None if no number is enough."""


@dataclass(frozen=True)
class Comparison:
    """All tables of a report."""

    runs: Sequence[Run]
    primary: str
    """Name of the primary number, such as ``final eval/success``."""
    baseline: str
    numbers: Mapping[tuple[str, str, int], Mapping[str, float]]
    """Numbers of each run by setting, algorithm and seed."""
    summaries: Sequence[Summary]
    differences: Sequence[Difference]
    notes: Sequence[str]
    """Sentences on what the tables cannot say."""

    def summary(self, setting: str, algorithm: str, metric: str) -> Summary | None:
        """Return one entry of the table of summaries."""
        key = setting, algorithm, metric
        return next((item for item in self.summaries if (item.setting, item.algorithm, item.metric) == key), None)

    @property
    def metrics(self) -> list[str]:
        """All numbers, the primary one first."""
        return list(dict.fromkeys([self.primary, *(item.metric for item in self.summaries)]))


def label_runs(runs: Sequence[Run], own: Sequence[str]) -> None:
    """Check that runs with one label differ in nothing but the seed and what ``own`` names.

    Raises:
        ConfigError: they differ, or a seed occurs twice.
    """
    first: dict[tuple[str, str], Run] = {}
    seen: set[tuple[str, str, int]] = set()
    for run in runs:
        one = first.setdefault((run.setting, run.algorithm), run)
        names = sorted((one.values.keys() | run.values.keys()) - set(own))
        if name := next(differing(one.values, run.values, names), None):
            raise ConfigError(
                f"{one.folder} and {run.folder} are both {run.algorithm} but differ in {name} "
                f"({one.values.get(name)!r} and {run.values.get(name)!r}); give them names of their own: NAME=RUN"
            )
        if (key := (run.setting, run.algorithm, run.seed)) in seen:
            raise ConfigError(f"{run.folder} is a second run of {run.algorithm} with seed {run.seed}; leave one out")
        seen.add(key)


def aggregate(runs: Sequence[Run], baseline: str, primary: str) -> Comparison:
    """Compute all tables.

    Args:
        primary: metric of evaluations whose last value the comparison is about.

    Raises:
        ConfigError: there are no runs, or runs of one setting differ in environment, evaluation or task order.
    """
    if not runs:
        raise ConfigError("no run has finished, so there is nothing to compare; see the messages above")
    settings = list(dict.fromkeys(run.setting for run in runs))
    for setting in settings:
        _check_comparable([run for run in runs if run.setting == setting])
    numbers = {(run.setting, run.algorithm, run.seed): reduced(run) for run in runs}
    summaries = _summaries(numbers)
    chosen = f"final {primary}"
    tested = list(dict.fromkeys([chosen, *_TESTED]))
    differences = [
        found
        for setting in settings
        for metric in tested
        for found in _differences(summaries, setting, metric, baseline)
    ]
    return Comparison(runs, chosen, baseline, numbers, summaries, differences, _notes(runs, summaries, differences))


def _check_comparable(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if name := next(differing(first.values, run.values, SHARED), None):
            raise ConfigError(
                f"{first.folder} and {run.folder} differ in {name} ({first.values.get(name)!r} and "
                f"{run.values.get(name)!r}), so one table cannot compare them; compare them apart"
            )


def _summaries(numbers: Mapping[tuple[str, str, int], Mapping[str, float]]) -> list[Summary]:
    by: dict[tuple[str, str, str], dict[int, float]] = {}
    for (setting, algorithm, seed), found in numbers.items():
        for metric, value in found.items():
            by.setdefault((setting, algorithm, metric), {})[seed] = value
    return [
        Summary(
            setting,
            algorithm,
            metric,
            by_seed,
            mean_interval(values := list(by_seed.values())),
            bootstrap_interval(values),
            standard_deviation(values),
        )
        for (setting, algorithm, metric), by_seed in by.items()
    ]


def _differences(summaries: Sequence[Summary], setting: str, metric: str, baseline: str) -> list[Difference]:
    here = {item.algorithm: item for item in summaries if (item.setting, item.metric) == (setting, metric)}
    if baseline not in here:
        return []
    base = here.pop(baseline)
    found = []
    for algorithm, item in here.items():
        seeds = sorted(item.by_seed.keys() & base.by_seed.keys())
        first, second = ([one.by_seed[seed] for seed in seeds] for one in (item, base))
        if not seeds:
            continue
        gaps = [a - b for a, b in zip(first, second, strict=True)]
        test, spread = paired_test(first, second), standard_deviation(gaps)
        pairs = pairs_for_power(test.difference.mean, spread)
        entry = (setting, algorithm, baseline, metric, test.difference, bootstrap_interval(gaps), spread)
        found.append((entry, test.p_value, pairs))
    known = [p for _, p, _ in found if math.isfinite(p)]
    corrected = iter(holm(known))
    return [
        Difference(*entry, p, next(corrected) if math.isfinite(p) else math.nan, pairs) for entry, p, pairs in found
    ]


def _notes(runs: Sequence[Run], summaries: Sequence[Summary], differences: Sequence[Difference]) -> list[str]:
    notes = []
    single = sorted({f"{item.setting}/{item.algorithm}" for item in summaries if len(item.by_seed) == 1})
    if single:
        notes.append(f"One seed only, so no interval and no test: {', '.join(single)}.")
    commits = sorted({run.commit for run in runs})
    if len(commits) > 1:
        notes.append(f"The runs are of {len(commits)} commits: {', '.join(commit or 'unknown' for commit in commits)}.")
    elif commits[0].endswith("+changes"):
        notes.append("The checkout had changes that no commit holds when the runs were made.")
    if any(run.side_by_side != 1 for run in runs):
        notes.append("Not all runs are known to have had the machine alone, so times on the clock may not be theirs.")
    if any(item.t.count < 6 for item in differences):
        notes.append("With fewer than six pairs, intervals and the seeds needed are rough.")
    return notes
