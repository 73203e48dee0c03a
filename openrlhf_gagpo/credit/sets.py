"""Sets of rows: sums, means and spreads per set, with the project's one rule for sets that have no spread.

Dividing rounding noise by a tiny spread plus epsilon produces arbitrary advantages, so spread at rounding level counts
as none: such a set's deviations stay undivided, and those at rounding level are exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
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
    "Scale",
    "Sets",
    "SetStatistics",
    "by_spread",
    "deviations",
    "normalise",
    "set_statistics",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EPSILON = 1e-6
"""Added to a standard deviation before dividing by it."""
ROUNDING = 1e-9
"""Spread up to this share of the mean's magnitude (or of 1) is rounding noise."""


class Sets(Protocol):
    """A partition of rows into numbered, non-empty sets."""

    @property
    def count(self) -> Ints:
        """Rows per set."""

    def sum(self, values: Floats) -> Floats:
        """Sum of a row quantity per set."""

    def expand(self, per_set: NDArray) -> NDArray:
        """A set quantity for every row."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Sets that are consecutive rows, which needs no index per row as ``Labels`` does."""

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
        out = np.zeros(len(self.count))
        np.add.at(out, self.label, values)
        return out

    def expand(self, per_set: NDArray) -> NDArray:
        return per_set.take(self.label, mode="wrap")  # never out of range, and quicker than looking whether it is


@dataclass(frozen=True, eq=False)
class SetStatistics:
    """Per set: number of entries, mean, standard deviation, and whether it has no spread."""

    count: Ints
    mean: Floats
    std: Floats
    flat: NDArray[np.bool_]


Scale = Callable[[SetStatistics], Floats]
"""What deviations are multiplied by, per set, in an array that the caller may change."""


def set_statistics(values: Floats, sets: Sets, ddof: int = 1) -> SetStatistics:
    """Statistics of ``values`` per set, with ``ddof`` 0 or 1; a set with one entry has std 0."""
    return _centre(values, sets, ddof)[1]


def by_spread(stats: SetStatistics) -> Floats:
    """Factor per set ``1 / (std + epsilon)``; 1 in flat sets, which are centred only."""
    factor = stats.std + EPSILON
    np.divide(1.0, factor, out=factor)
    np.putmask(factor, stats.flat, 1.0)
    return factor


def normalise(
    values: Floats, sets: Sets, scale: Scale | None = by_spread, *, ddof: int = 1
) -> tuple[Floats, SetStatistics]:
    """``(x - mean) * scale`` with the statistics of the value's own set, and these statistics; None is no scaling.

    Exactly 0 in flat sets: there every deviation is rounding noise.
    """
    centred, stats = _centre(values, sets, ddof)
    if scale is not None or stats.flat.any():
        factor = np.ones_like(stats.std) if scale is None else scale(stats)
        np.putmask(factor, stats.flat, 0.0)
        centred *= sets.expand(factor)
    return centred, stats


def _centre(values: Floats, sets: Sets, ddof: int) -> tuple[Floats, SetStatistics]:
    """Values less the mean of their set, and the statistics."""
    # in place: there may be nearly as many sets as rows
    count = sets.count
    size = count.astype(np.float64)
    mean = sets.sum(values)
    mean /= size
    centred = sets.expand(mean)
    np.subtract(values, centred, out=centred)
    std = sets.sum(centred * centred)
    size -= ddof
    std /= np.maximum(size, 1.0, out=size)
    np.sqrt(std, out=std)
    # where there is no spread, the mean is as large as the largest entry
    bound = np.abs(mean, out=size)
    np.maximum(bound, 1.0, out=bound)
    bound *= ROUNDING
    return centred, SetStatistics(count=count, mean=mean, std=std, flat=std <= bound)


def deviations(values: Floats, sets: Sets, stats: SetStatistics, scale: Scale | None = by_spread) -> Floats:
    """``(x - mean) * scale`` with statistics of other entries than ``values``; None is no scaling.

    In flat sets exactly 0 where the deviation is at rounding level.
    """
    out = values - sets.expand(stats.mean)
    if stats.flat.any():
        # no entry lies further from its mean than std * sqrt(count); the factor 2 leaves room for rounding
        noise = 2 * ROUNDING * np.maximum(1.0, np.abs(stats.mean)) * np.sqrt(stats.count)
        # a product with the mask, so that no rows are gathered or scattered
        out *= np.abs(out) > sets.expand(np.where(stats.flat, noise, -1.0))
    if scale is not None:
        out *= sets.expand(scale(stats))
    return out
