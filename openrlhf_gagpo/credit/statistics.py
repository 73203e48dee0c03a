"""Mean and spread per set, with the project's one rule for sets that have no spread.

Dividing rounding noise by a tiny standard deviation plus epsilon produces arbitrary advantages. Therefore a spread at
rounding level counts as none: deviations in such a set are not divided, and those at rounding level are exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.sets import Floats, Ints, Sets
from openrlhf_gagpo.errors import EstimatorError

__all__ = ["ROUNDING", "Statistics", "centred", "standardised", "statistics_of", "whitened"]

EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""
VARIANCE_EPSILON = 1e-8
"""Added to a variance before taking the root."""
ROUNDING = 1e-9
"""Spread up to this share of the mean's magnitude (or of 1) is rounding noise."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Number of entries, mean and standard deviation of each set."""

    count: Ints
    mean: Floats
    std: Floats
    noise: Floats
    """Deviations up to this size are rounding noise in a set without spread; 0 for a set with spread."""


def statistics_of(values: Floats, sets: Sets, ddof: int = 1) -> Statistics:
    """Compute statistics of ``values`` per set; ``ddof`` 1 is the unbiased deviation, 0 that of a population."""
    mean = sets.mean(values)
    squares = sets.sum((values - sets.expand(mean)) ** 2)
    std = np.sqrt(squares / np.maximum(sets.count - ddof, 1))
    # Where there is no spread, the mean is as large as the largest entry.
    rounding = ROUNDING * np.maximum(1.0, np.abs(mean))
    # No entry lies further from its mean than std * sqrt(count); the factor 2 leaves room for rounding.
    noise = np.where(std > rounding, 0.0, 2 * np.sqrt(sets.count) * rounding)
    return Statistics(count=sets.count, mean=mean, std=std, noise=noise)


def centred(values: Floats, sets: Sets, statistics: Statistics) -> Floats:
    """Return ``x - mean``, exactly 0 where that is rounding noise; the statistics may come from other entries."""
    mean = sets.expand(statistics.mean)
    if values.shape != mean.shape:
        raise EstimatorError(f"an array of {len(values)} numbers was given for {len(mean)} entries")
    deviation = values - mean
    return np.where(np.abs(deviation) <= sets.expand(statistics.noise), 0.0, deviation)  # NaN must not become 0


def standardised(values: Floats, sets: Sets, statistics: Statistics) -> Floats:
    """Return ``(x - mean) / (std + epsilon)``, or ``x - mean`` in a set without spread."""
    scale = np.where(statistics.noise > 0.0, 1.0, statistics.std + EPSILON)
    standard: Floats = centred(values, sets, statistics) / sets.expand(scale)
    return standard


def whitened(values: Floats, weights: Ints) -> Floats:
    """Return ``x - mean`` over the root of the unbiased variance, each entry counted ``weights`` times.

    All entries are 0 if there is no spread. This is the whitening of PPO code, with the weight of trained tokens.
    """
    total = weights.sum()
    if total < 2:
        return np.zeros_like(values)
    deviation = values - np.sum(weights * values) / total
    variance = np.sum(weights * deviation**2) / (total - 1)
    if np.sqrt(variance) <= ROUNDING * max(1.0, np.abs(values).max()):
        return np.zeros_like(values)
    result: Floats = deviation / np.sqrt(variance + VARIANCE_EPSILON)
    return result
