"""Integer index of a step batch: which rows follow each other, and which share a group or a state.

Built once per batch so that every estimator is a handful of whole-array operations. All estimators work in *sorted*
order: by group, then trajectory, then step, so that groups and trajectories are consecutive rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit.sets import Blocks, Floats, Ints, Labels

__all__ = ["Layout", "build_layout", "factorise"]


def factorise(*columns: Sequence[object]) -> list[Ints]:
    """Number the distinct keys of one or several columns from 0, in order of first appearance.

    Hashing beats sorting here: keys are often long observation strings.
    """
    numbers: dict[object, int] = {}
    for column in columns:
        numbers.update(dict.fromkeys(column))
    numbers = dict(zip(numbers, range(len(numbers)), strict=True))
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
        out = values.take(self.packed)
        bounds = self.bounds
        scaled = np.empty(bounds[1])
        for t in range(len(bounds) - 3, -1, -1):
            start, middle, end = bounds[t], bounds[t + 1], bounds[t + 2]
            addend = np.multiply(out[middle:end], decay, out=scaled[: end - middle])
            out[start : start + end - middle] += addend
        return out.take(self.unpacked)

    def next_values(self, values: Floats, final: Floats | float = 0.0) -> Floats:
        """The quantity of each row's next row, and ``final`` (one per trajectory, or one for all) on last rows."""
        out = np.empty_like(values)
        out[:-1] = values[1:]
        out[self.last] = final
        return out


def build_layout(
    *,
    group: Ints,
    trajectory: Ints,
    step: Ints,
    state: Ints,
    next_state: Ints,
    truncated: NDArray[np.bool_],
    trajectory_group: Ints,
) -> Layout:
    """Layout of rows whose steps are already known to run 0..T-1 inside every trajectory.

    Rows in the batch's order; all ids count from 0; ``trajectory_group`` is the group of each trajectory.
    """
    by_group = np.argsort(trajectory_group, kind="stable")
    number = np.empty_like(by_group)
    number[by_group] = np.arange(len(by_group))
    trajectories = Blocks.of_lengths(np.bincount(trajectory)[by_group])
    position = (trajectories.start[number])[trajectory] + step
    order = np.empty_like(position)
    order[position] = np.arange(len(position))
    last = trajectories.start + trajectories.count - 1

    cells, final_cell = _number_cells(group[order], state[order], next_state[order[last]], last)
    bounds, packed, unpacked = _pack(trajectories, step[order])
    return Layout(
        order=order,
        in_order=bool((position[1:] > position[:-1]).all()),
        groups=Blocks.of_lengths(np.bincount(group)),
        trajectories=trajectories,
        group_trajectories=Blocks.of_lengths(np.bincount(trajectory_group)),
        cells=cells,
        last=last,
        final_cell=np.where(truncated[order[last]], final_cell, -1),
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
    if size <= 16 * len(keys):  # a table of all (group, state) pairs is cheaper than sorting
        counts = np.bincount(keys, minlength=size)
        present = counts > 0
        table = np.where(present, np.cumsum(present) - 1, -1)
        return Labels(table[keys], counts[present]), table[final_keys]
    distinct, label, counts = np.unique(keys, return_inverse=True, return_counts=True)
    place = np.minimum(np.searchsorted(distinct, final_keys), len(distinct) - 1)
    return Labels(label, counts), np.where(distinct[place] == final_keys, place, -1)
