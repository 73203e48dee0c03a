"""Integer index of a step batch: which rows follow each other, and which share a group or a state.

Built once per batch so that every estimator is a handful of whole-array operations. All estimators work in *sorted*
order: by group, then trajectory, then step, so that groups and trajectories are consecutive rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit.sets import Blocks, Floats, Ints, Labels

__all__ = ["Layout", "build_layout", "factorise", "place"]


def factorise(*columns: Sequence[object]) -> list[Ints]:
    """Number the distinct keys of one or several columns from 0, in order of first appearance.

    By hashing, not sorting: keys are often long observation strings, and a string keeps its hash.
    """
    numbers: defaultdict[object, int] = defaultdict(count().__next__)
    return [np.fromiter(map(numbers.__getitem__, column), dtype=np.int64, count=len(column)) for column in columns]


@dataclass(frozen=True, eq=False)
class Layout:
    """Index arrays in sorted order, unless said otherwise.

    A *cell* is a pair (group, state): all visits of one state by the trajectories of one rollout group.
    """

    order: Ints
    """Row of the batch at each sorted position."""
    in_order: bool
    """The batch's rows are in sorted order already."""
    groups: Blocks
    trajectories: Blocks
    group_trajectories: Blocks
    """The trajectories of each group, as blocks of trajectory numbers."""
    cells: Labels
    last: Ints
    """Sorted position of each trajectory's last row."""
    final_cell: Ints
    """Per trajectory: cell of the state a truncated trajectory ended in; -1 if not truncated, or never visited."""
    packed: Ints
    """Sorted position of each packed position, see ``backward_sum``."""
    unpacked: Ints
    """Packed position of each sorted position."""
    bounds: tuple[int, ...]
    """First packed position of every time index, and the number of rows at the end."""

    @property
    def n(self) -> int:
        return len(self.order)

    def sort(self, values: NDArray) -> NDArray:
        """Put an array in the order of the batch's rows into sorted order."""
        return values if self.in_order else values[self.order]

    def restore(self, values: NDArray) -> NDArray:
        """Put a sorted array back into the order of the batch's rows."""
        if self.in_order:
            return values
        out = np.empty_like(values)
        out[self.order] = values
        return out

    def backward_sum(self, values: Floats, decay: float) -> Floats:
        """``y_t = x_t + decay * y_{t+1}`` inside every trajectory, with y = 0 after the last row.

        Works in packed order: all steps 0, then all steps 1, and so on, trajectories by falling length inside each
        block. The rows of step t + 1 then line up with the first rows of step t, and the recursion over the whole batch
        is one slice operation per time index.
        """
        if decay == 0.0:
            return values.copy()
        out = values.take(self.packed, mode="wrap")  # as in ``Labels.expand``
        scaled = np.empty(self.bounds[1])
        later = out[:0]
        for start, end in zip(self.bounds[-2::-1], self.bounds[:0:-1], strict=True):
            continued = out[start : start + len(later)]
            np.add(continued, np.multiply(later, decay, out=scaled[: len(later)]), out=continued)
            later = out[start:end]
        return out.take(self.unpacked, mode="wrap")

    def next_values(self, values: Floats, final: Floats | float = 0.0) -> Floats:
        """The quantity of each row's next row, and ``final`` (one per trajectory, or one for all) on last rows."""
        out = np.empty_like(values)
        out[:-1] = values[1:]
        out[self.last] = final
        return out


def place(trajectory: Ints, step: Ints, lengths: Ints, trajectory_group: Ints) -> tuple[Blocks, Ints]:
    """The trajectories as blocks of sorted rows, and the sorted position of every row, which has to be checked.

    Rows in the batch's order; ``lengths`` and ``trajectory_group`` are per trajectory; all ids count from 0.
    """
    by_group = np.argsort(trajectory_group, kind="stable")
    trajectories = Blocks.of_lengths(lengths[by_group])
    start = np.empty_like(trajectories.start)
    start[by_group] = trajectories.start
    return trajectories, start[trajectory] + step


def build_layout(
    *,
    order: Ints,
    trajectories: Blocks,
    trajectory_group: Ints,
    step: Ints,
    state: Ints,
    final_state: Ints,
    truncated: NDArray[np.bool_],
) -> Layout:
    """Layout of rows whose steps are already known to run 0..T-1 inside every trajectory.

    ``order`` as in ``Layout``; all else is sorted already: ``step`` and ``state`` per row, ``trajectory_group``,
    ``final_state`` and ``truncated`` per trajectory. All ids count from 0.
    """
    last = trajectories.start + trajectories.count - 1
    group = trajectories.expand(trajectory_group)
    cells, final_cell = _number_cells(group, state, final_state, last)
    bounds, packed, unpacked = _pack(trajectories, step)
    return Layout(
        order=order,
        in_order=bool((order[1:] > order[:-1]).all()),
        groups=Blocks.of_lengths(np.bincount(group)),
        trajectories=trajectories,
        group_trajectories=Blocks.of_lengths(np.bincount(trajectory_group)),
        cells=cells,
        last=last,
        final_cell=np.where(truncated, final_cell, -1),
        packed=packed,
        unpacked=unpacked,
        bounds=bounds,
    )


def _pack(trajectories: Blocks, step: Ints) -> tuple[tuple[int, ...], Ints, Ints]:
    longest_first = np.argsort(-trajectories.count, kind="stable")
    rank = np.empty_like(longest_first)
    rank[longest_first] = np.arange(len(longest_first))
    first = np.concatenate([[0], np.cumsum(np.bincount(step))])
    unpacked = first[step] + trajectories.expand(rank)
    packed = np.empty_like(unpacked)
    packed[unpacked] = np.arange(len(unpacked))
    return tuple(first.tolist()), packed, unpacked


def _number_cells(group: Ints, state: Ints, final_state: Ints, last: Ints) -> tuple[Labels, Ints]:
    """Cells of the rows, and the cell of each trajectory's final state (-1: its group never visited it)."""
    span = int(max(state.max(), final_state.max())) + 1
    keys = group * span + state
    final_keys = group[last] * span + final_state
    size = (int(group.max()) + 1) * span
    if size <= 16 * len(keys):  # small enough for a table of all (group, state) pairs: no sorting
        counts = np.bincount(keys, minlength=size)
        present = counts > 0
        table = np.where(present, np.cumsum(present) - 1, -1)
        return Labels(table[keys], counts[present]), table[final_keys]
    distinct, label, counts = np.unique(keys, return_inverse=True, return_counts=True)
    place = np.minimum(np.searchsorted(distinct, final_keys), len(distinct) - 1)
    return Labels(label, counts), np.where(distinct[place] == final_keys, place, -1)
