"""Sets of rows: sums, means and spreads per set, with the project's one rule for sets that have no spread.

Dividing rounding noise by a tiny spread plus epsilon produces arbitrary advantages, so spread at rounding level counts
as none: such a set's deviations stay undivided, and those at rounding level are exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EPSILON",
    "ROUNDING",
    "Blocks",
    "Floats",
    "Ints",
    "Labels",
    "Sets",
    "SetStatistics",
    "deviations",
    "set_statistics",
    "standardise",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""
ROUNDING = 1e-9
"""Spread up to this share of the largest magnitude (or of 1) is rounding noise."""


class Sets(Protocol):
    """A partition of rows into numbered, non-empty sets."""

    @property
    def count(self) -> Ints:
        """Rows per set."""

    def sum(self, values: Floats) -> Floats:
        """Sum of a row quantity per set."""

    def largest(self, values: Floats) -> Floats:
        """Largest row quantity per set; quantities are not negative."""

    def expand(self, per_set: NDArray) -> NDArray:
        """A set quantity for every row."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Sets that are consecutive rows; much faster than ``Labels``."""

    start: Ints
    count: Ints

    @classmethod
    def of_lengths(cls, count: Ints) -> Blocks:
        return cls(start=np.cumsum(count) - count, count=count)

    def sum(self, values: Floats) -> Floats:
        return np.add.reduceat(values, self.start)

    def largest(self, values: Floats) -> Floats:
        return np.maximum.reduceat(values, self.start)

    def expand(self, per_set: NDArray) -> NDArray:
        return np.repeat(per_set, self.count)


@dataclass(frozen=True, eq=False)
class Labels:
    """Sets given by a number for every row."""

    label: Ints
    count: Ints

    def sum(self, values: Floats) -> Floats:
        return np.bincount(self.label, weights=values, minlength=len(self.count))

    def largest(self, values: Floats) -> Floats:
        out = np.zeros(len(self.count))
        np.maximum.at(out, self.label, values)
        return out

    def expand(self, per_set: NDArray) -> NDArray:
        return per_set.take(self.label)


@dataclass(frozen=True, eq=False)
class SetStatistics:
    """Per set: number of entries, mean, standard deviation, and whether it has no spread."""

    count: Ints
    mean: Floats
    std: Floats
    flat: NDArray[np.bool_]


def set_statistics(values: Floats, sets: Sets, ddof: int = 1) -> SetStatistics:
    """Statistics of ``values`` per set; a set with ``ddof`` entries or fewer has std 0."""
    count = sets.count
    mean = sets.sum(values) / count
    squares = values - sets.expand(mean)
    squares *= squares
    std = np.sqrt(sets.sum(squares) / np.maximum(count - ddof, 1))
    std[count <= ddof] = 0.0
    flat = std <= ROUNDING
    doubtful = ~flat & (std <= ROUNDING * max(float(values.max()), -float(values.min())))
    if doubtful.any():  # only then is each set's own largest magnitude worth finding
        flat |= std <= ROUNDING * sets.largest(np.abs(values))
    return SetStatistics(count=count, mean=mean, std=std, flat=flat)


def deviations(values: Floats, sets: Sets, stats: SetStatistics) -> Floats:
    """``x - mean`` of its set; exactly 0 at rounding level in flat sets."""
    out = values - sets.expand(stats.mean)
    if stats.flat.any():
        # no entry lies further from its mean than std * sqrt(count); twice that allows for |mean| < largest magnitude
        noise = 2 * ROUNDING * np.maximum(1.0, np.abs(stats.mean)) * np.sqrt(stats.count)
        out *= np.abs(out) > sets.expand(np.where(stats.flat, noise, -1.0))  # several times faster than a masked write
    return out


def standardise(values: Floats, sets: Sets, stats: SetStatistics) -> Floats:
    """``(x - mean) / (std + epsilon)`` of its set; flat sets are centred only."""
    out = deviations(values, sets, stats)
    out /= sets.expand(np.where(stats.flat, 1.0, stats.std + EPSILON))
    return out
