"""What another estimator would have given the steps of an episode."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from openrlhf_gagpo.credit import get, names
from openrlhf_gagpo.errors import GagpoError
from openrlhf_gagpo.viewer.sources import Source

__all__ = ["Estimate", "Estimates"]

_KEPT = 16
_Key = tuple[str, str, int]


@dataclass(frozen=True)
class Estimate:
    """Credit of one estimator on one file of a source."""

    estimator: str
    steps: Mapping[_Key, Mapping[str, float]]
    """By group, trajectory and step, without steps that the estimator leaves out."""
    problem: str = ""
    """Why there is none, or ""."""


class Estimates:
    """Computes estimates when they are asked for and keeps the latest."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int, str], Estimate] = OrderedDict()
        self._lock = Lock()

    @staticmethod
    def names() -> list[str]:
        """Return the names of all estimators."""
        return list(names())

    def get(self, source: Source, part: int, estimator: str) -> Estimate:
        """Compute the credit of all steps of a file, as an iteration of training does.

        The trials of a task form a group in an evaluation. The estimator that a run was trained with has the options of
        the run, any other its defaults.
        """
        path = next((item.path for item in source.parts() if item.number == part), source.path)
        key = (source.key, part, path.stat().st_mtime_ns, estimator)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = _estimate(source, part, estimator)
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]


def _estimate(source: Source, part: int, estimator: str) -> Estimate:
    # Imported here, since resolving a configuration is slow and most pages show one estimator.
    from openrlhf_gagpo.comparison.compute import compute
    from openrlhf_gagpo.comparison.recorded import steps_of
    from openrlhf_gagpo.comparison.source import read_source
    from openrlhf_gagpo.comparison.steps import Source as Steps

    try:
        chosen = get(estimator)
        if source.evaluation is not None:
            trials = [trial for sample in source.evaluation.samples().values() for trial in sample.trials]
            steps = Steps(source.title, [steps_of(trials, {})])
        elif source.is_run:
            steps = read_source(source.path, str(part))
        else:
            steps = read_source(next(item.path for item in source.parts() if item.number == part))
        own = steps.own
        options = own.options if own is not None and own.estimator == chosen.name else chosen.options_cls()
        credit = compute(steps, chosen.name, options)
    except (GagpoError, OSError) as error:
        return Estimate(estimator, {}, str(error))
    found: dict[_Key, Mapping[str, float]] = {}
    for row, identity in enumerate(steps.identity):
        if credit.keep[row]:
            values = {name: float(column[row]) for name, column in credit.values.items()}
            found[str(identity["group"]), str(identity["traj"]), identity["step"]] = {
                name: value for name, value in values.items() if not math.isnan(value)
            }
    return Estimate(chosen.name, found)
