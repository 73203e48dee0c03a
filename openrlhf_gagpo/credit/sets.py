"""Partitions of the rows of a batch, with sums and means per set and recursions along sequences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.errors import EstimatorError

__all__ = ["Bools", "Floats", "Ints", "Sequences", "Sets"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sets:
    """Entries (rows of a batch, or tokens) divided into numbered sets; build it with ``of_labels``."""

    label: Ints
    """Number of the set that each entry belongs to."""
    count: Ints
    """Entries of each set; a set may have none."""

    @classmethod
    def of_labels(cls, label: Ints, sets: int) -> Sets:
        """Build sets numbered 0 to ``sets - 1`` from the set number of each entry."""
        return cls(label=label, count=np.bincount(label, minlength=sets))

    @classmethod
    def whole(cls, entries: int) -> Sets:
        """Put all entries into one set."""
        return cls.of_labels(np.zeros(entries, dtype=np.int64), 1)

    def sum(self, values: Floats | Bools) -> Floats:
        """Sum over the entries of each set; for booleans, count the true ones."""
        weights = _of_length(values, len(self.label))
        return np.asarray(np.bincount(self.label, weights, minlength=len(self.count)), dtype=np.float64)

    def mean(self, values: Floats) -> Floats:
        """Average over the entries of each set; 0 for an empty set."""
        mean: Floats = self.sum(values) / np.maximum(self.count, 1)
        return mean

    def expand(self, per_set: NDArray[Any]) -> NDArray[Any]:
        """Give every entry the value of its set."""
        return _of_length(per_set, len(self.count))[self.label]


@dataclass(frozen=True, eq=False)
class Sequences(Sets):
    """Sets of consecutive entries, such as the steps of a trajectory or the tokens of a response."""

    start: Ints
    """Position of each sequence's first entry, or of the next entry if it is empty."""

    @classmethod
    def of_lengths(cls, count: Ints) -> Sequences:
        """Build sequences of these lengths, one after the other."""
        return cls(label=np.repeat(np.arange(len(count)), count), count=count, start=np.cumsum(count) - count)

    @property
    def is_last(self) -> Bools:
        """Whether each entry is the last of its sequence."""
        return np.diff(self.label, append=len(self.count)) > 0

    def sum(self, values: Floats | Bools) -> Floats:
        """Sum over the entries of each sequence; for booleans, count the true ones."""
        values = _of_length(values, len(self.label))
        total = np.zeros(len(self.count))
        filled = self.count > 0  # ``reduceat`` cannot handle empty ranges
        total[filled] = np.add.reduceat(values, self.start[filled], dtype=np.float64)
        return total

    def expand(self, per_set: NDArray[Any]) -> NDArray[Any]:
        """Give every entry the value of its sequence."""
        return np.repeat(_of_length(per_set, len(self.count)), self.count)

    def following(self, values: Floats, end: Floats | float = 0.0) -> Floats:
        """Return the next entry's value; ``end`` (one per sequence, or one for all) at the end of a sequence."""
        following = np.roll(_of_length(values, len(self.label)), -1)
        filled = self.count > 0
        last = (self.start + self.count - 1)[filled]
        following[last] = _per_entry(end, len(self.count))[filled]
        return following

    def backward_sum(self, values: Floats, decay: Floats | float) -> Floats:
        """Compute ``y_t = x_t + decay_t * y_{t+1}`` along every sequence, with y = 0 after its end.

        ``decay`` is one number, or one per entry. Each pass of the loop handles one position in all sequences at once.
        """
        total = np.array(_of_length(values, len(self.label)), dtype=np.float64)
        decay = _per_entry(decay, len(total))
        for entry in reversed(self._followed_entries):
            total[entry] += decay[entry] * total[entry + 1]
        return total

    @cached_property
    def _followed_entries(self) -> list[Ints]:
        """Entries that have a next one, by position in their sequence."""
        entry, left = self.start, self.count - 1
        entries = []
        while (left > 0).any():
            entry, left = entry[left > 0], left[left > 0]
            entries.append(entry)
            entry, left = entry + 1, left - 1
        return entries


def _per_entry(values: Floats | float, expected: int) -> Floats:
    """Return one number for each of ``expected`` entries: ``values`` itself, or the one number repeated."""
    return np.full(expected, values) if np.ndim(values) == 0 else _of_length(np.asarray(values), expected)


def _of_length(values: NDArray[Any], expected: int) -> NDArray[Any]:
    """Return ``values`` unchanged. Raises ``EstimatorError`` for a wrong length, which indexing might not notice."""
    if np.shape(values) != (expected,):
        raise EstimatorError(f"an array of shape {np.shape(values)} was given where {expected} numbers are needed")
    return values
