"""Parts of the estimators that read the information gain of steps. Arrays are in the batch's order.

A step has a gain unless its ``ig`` is NaN, as that of the step that gives the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, option
from openrlhf_gagpo.credit.scores import episode_scores, score_entries
from openrlhf_gagpo.credit.sets import Bools, Floats, Ints, Sets
from openrlhf_gagpo.credit.statistics import EPSILON, Statistics, centred, statistics_of

__all__ = ["GainOptions", "Gains", "compared", "floored_scale", "outcome_advantage", "turns"]

VARIANCE_FLOOR = 1e-8
"""Added to a variance, so that gains that hardly differ are not blown up."""


@dataclass(frozen=True)
class GainOptions(EstimatorOptions):
    """What the options of every estimator that reads the information gain contain."""

    ig_type: str = option("ig_type", "log_prob")
    ig_answers: str = option("ig_answers", "first")


@dataclass(frozen=True, eq=False)
class Gains:
    """Information gains of the steps that have one."""

    measured: Bools
    """Per row: whether it has a gain."""
    values: Floats
    """Gains of the measured rows."""

    @classmethod
    def of(cls, batch: StepBatch, weight: float = 1.0) -> Gains:
        """Read the column ``ig``, times ``weight``."""
        gain = batch.required("ig")
        measured = ~np.isnan(gain)
        return cls(measured, weight * gain[measured])

    def rows(self, values: Floats) -> Floats:
        """Spread one number per measured row over all rows, with 0 for the others."""
        out = np.zeros(len(self.measured))
        out[self.measured] = values
        return out


def turns(group: Ints, step: Ints) -> Sets:
    """Put rows of the same group and step into one set."""
    distinct, label = np.unique(group * (step.max(initial=0) + 1) + step, return_inverse=True)
    return Sets.of_labels(label, len(distinct))


def floored_scale(std: Floats) -> Floats:
    """Return what a deviation is divided by: ``sqrt(std^2 + 1e-8) + 1e-6``."""
    scale: Floats = np.sqrt(std**2 + VARIANCE_FLOOR) + EPSILON
    return scale


def compared(values: Floats, sets: Sets, statistics: Statistics, no_std_norm: bool) -> Floats:
    """Return deviations from the mean over the floored scale, or not divided with ``no_std_norm``.

    As everywhere, deviations in a set without spread are not divided, and 0 if they are rounding noise.
    """
    deviation = centred(values, sets, statistics)
    if no_std_norm:
        return deviation
    scale = np.where(statistics.noise > 0.0, 1.0, floored_scale(statistics.std))
    divided: Floats = deviation / sets.expand(scale)
    return divided


def outcome_advantage(batch: StepBatch, options: EstimatorOptions, no_std_norm: bool) -> Floats:
    """Compare the score of each step's episode with its group, over the deviation of a population."""
    scores = episode_scores(batch, options)
    statistics = statistics_of(*score_entries(batch, scores, options), ddof=0)
    return compared(scores, batch.groups, statistics, no_std_norm)
