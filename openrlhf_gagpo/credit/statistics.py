"""Mean and spread per set, with the project's one rule for sets that have no spread.

Dividing rounding noise by a tiny standard deviation plus epsilon produces arbitrary advantages. So a spread at rounding
level counts as none: deviations in such a set stay undivided, and those at rounding level are exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.sets import Floats, Ints, Sets

__all__ = ["ROUNDING", "Statistics", "centred", "standardised", "statistics_of"]

EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""
ROUNDING = 1e-9
"""Spread up to this share of the mean's magnitude (or of 1) is rounding noise."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Number of entries, mean and standard deviation per set; the deviation is 0 where there is no spread."""

    count: Ints
    mean: Floats
    std: Floats


def statistics_of(values: Floats, sets: Sets, ddof: int = 1) -> Statistics:
    """Statistics of ``values`` per set; ``ddof`` 1 is the unbiased deviation, 0 that of a population."""
    mean = sets.mean(values)
    squares = sets.sum((values - sets.expand(mean)) ** 2)
    std = np.sqrt(squares / np.maximum(sets.count - ddof, 1))
    return Statistics(count=sets.count, mean=mean, std=np.where(std > _noise(mean), std, 0.0))


def centred(values: Floats, sets: Sets, statistics: Statistics) -> Floats:
    """``x - mean``; the statistics may be those of other entries than ``values``.

    Exactly 0 where the set has no spread and the deviation is rounding noise.
    """
    # No entry lies further from its mean than std * sqrt(count); the factor 2 leaves room for rounding.
    noise = 2 * np.sqrt(statistics.count) * _noise(statistics.mean)
    noise = np.where(statistics.std == 0.0, noise, 0.0)
    deviation = values - sets.expand(statistics.mean)
    return np.where(np.abs(deviation) > sets.expand(noise), deviation, 0.0)


def standardised(values: Floats, sets: Sets, statistics: Statistics) -> Floats:
    """``(x - mean) / (std + epsilon)``; only ``x - mean`` in a set without spread."""
    scale = np.where(statistics.std > 0.0, statistics.std + EPSILON, 1.0)
    return centred(values, sets, statistics) / sets.expand(scale)


def _noise(mean: Floats) -> Floats:
    """Largest spread that counts as none. Where there is none, the mean is as large as the largest entry."""
    return ROUNDING * np.maximum(1.0, np.abs(mean))
