"""The credit of one estimator on all steps of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.credit import EstimatorOptions, get
from openrlhf_gagpo.credit.sets import Bools, Floats
from openrlhf_gagpo.errors import EstimatorError

__all__ = ["QUANTITIES", "Credit", "compute", "equal_to_recorded"]

QUANTITIES: Mapping[str, str] = {
    "advantage": "advantage",
    "return": "return_",
    "value_proxy": "value",
    "td_residual": "td_residual",
}
"""Name in the output -> field of a ``CreditResult``."""


@dataclass(frozen=True)
class Credit:
    """Credit of N steps in the order of the source."""

    estimator: str
    options: EstimatorOptions
    values: Mapping[str, Floats]
    """(N,) per name in ``QUANTITIES``; NaN where the step has none."""
    keep: Bools
    """(N,) whether the step would be trained on."""
    diagnostics: Mapping[str, float]
    """As training logs them, averaged over the parts of the source."""


def compute(source: Source, estimator: str, options: EstimatorOptions) -> Credit:
    """Compute credit for each part of ``source`` by itself, as an iteration of training does.

    Steps of groups with fewer trajectories than the estimator wants get no credit.

    Raises:
        EstimatorError: the estimator needs a column that the source lacks, or no group is large enough.
    """
    chosen = get(estimator)
    values = {name: np.full(len(source), np.nan) for name in QUANTITIES}
    keep = np.zeros(len(source), dtype=np.bool_)
    reports: list[Mapping[str, float]] = []
    start = 0
    for part in source.parts:
        rows = part.of_groups(chosen.group_min)
        if len(rows):
            lacking = sorted(chosen.needs - part.columns.keys())
            if lacking:
                raise EstimatorError(
                    f"estimator {estimator} needs {' and '.join(lacking)} of every step, which a model computes and "
                    f"{source.title} does not hold; leave it out, or give JSON lines with that column"
                )
            result = chosen(part.batch(rows), options)
            for name, field in QUANTITIES.items():
                numbers = getattr(result, field)
                if numbers is not None:
                    values[name][start + rows] = numbers
            keep[start + rows] = result.keep
            reports.append(result.diagnostics)
        start += len(part)
    if not reports:
        raise EstimatorError(
            f"estimator {estimator} compares at least {chosen.group_min} trajectories of a group, and no group of "
            f"{source.title} has as many; record more"
        )
    return Credit(estimator, options, values, keep, _averaged(reports))


def equal_to_recorded(source: Source, credit: Credit) -> tuple[int, int]:
    """Return how many recorded advantages are exactly those of ``credit``, and how many were recorded."""
    equal, total, start = 0, 0, 0
    for part in source.parts:
        advantage = credit.values["advantage"][start : start + len(part)]
        recorded = {row: values["advantage"] for row, values in part.recorded.items() if "advantage" in values}
        equal += sum(float(advantage[row]) == value for row, value in recorded.items())
        total += len(recorded)
        start += len(part)
    return equal, total


def _averaged(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([report[name] for report in reports])) for name in reports[0]}
