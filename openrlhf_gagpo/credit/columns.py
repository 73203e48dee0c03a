"""Checks of the columns that a step batch is built from; every error names the column, or the row if one is wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openrlhf_gagpo.credit.sets import Bools, Floats, Ints
from openrlhf_gagpo.errors import StepBatchError

__all__ = [
    "KeyColumn",
    "Keys",
    "RowNames",
    "count_column",
    "float_column",
    "key_columns",
    "step_column",
    "switch_column",
    "token_column",
]

Keys = NDArray[np.object_]
KeyColumn = Sequence[str] | Sequence[int] | NDArray[Any]


@dataclass(frozen=True)
class RowNames:
    """The names of rows in messages."""

    group: Keys
    traj: Keys
    step: Ints

    def __len__(self) -> int:
        return len(self.step)

    def refuse(self, rows: Ints, what: str) -> None:
        """Raise ``StepBatchError`` about the first of ``rows``, if there is any."""
        if len(rows):
            row = int(rows.min())
            name = f"row {row} (group {self.group[row]!r}, trajectory {self.traj[row]!r}, step {self.step[row]})"
            raise StepBatchError(f"{name}: {what}", row)


def step_column(column: ArrayLike) -> Ints:
    """Return the step numbers, whose length is the number of rows."""
    steps = np.asarray(column)
    if steps.ndim != 1 or len(steps) == 0:
        raise StepBatchError("a step batch needs at least one row and one-dimensional columns")
    if steps.dtype.kind not in "iu":
        raise StepBatchError(f"column step must hold integers, not {steps.dtype}")
    return steps.astype(np.int64)


def key_columns(n: int, **columns: KeyColumn) -> tuple[Keys, list[Ints]]:
    """Return the distinct keys of columns of one kind, by first appearance, and each column's indices into them.

    Keys are all text or all whole numbers, because other types have values that are equal without being the same, such
    as ``1`` and ``True``.
    """
    lists = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns.values()]
    for name, keys in zip(columns, lists, strict=True):
        if len(keys) != n:
            raise StepBatchError(f"column {name} has {len(keys)} rows but step has {n}; give all columns equal lengths")
    types = set(map(type, chain(*lists)))
    if types not in ({str}, {int}):
        found = ", ".join(sorted(kind.__name__ for kind in types))
        raise StepBatchError(f"keys in {' and '.join(columns)} must be all str or all int, not {found}; use text keys")
    place: defaultdict[object, int] = defaultdict(count().__next__)  # a new key gets the next number
    numbers = [np.fromiter(map(place.__getitem__, keys), dtype=np.int64, count=n) for keys in lists]
    return np.fromiter(place, dtype=np.object_, count=len(place)), numbers


def float_column(name: str, column: ArrayLike, rows: RowNames, *, nan: bool = False) -> Floats:
    """Return one finite number per row; with ``nan`` a row may have NaN."""
    values = _numbers(name, column)
    if values.shape != (len(rows),):
        raise StepBatchError(
            f"column {name} has shape {values.shape} but step has {len(rows)} rows; give equal lengths"
        )
    good = np.isfinite(values) | np.isnan(values) if nan else np.isfinite(values)
    rows.refuse(np.flatnonzero(~good), f"{name} is not a finite number")
    return values


def token_column(name: str, column: ArrayLike, n_tokens: Ints, rows: RowNames) -> Floats:
    """Return one finite number per trained token, row after row."""
    values = _numbers(name, column)
    total = int(n_tokens.sum())
    if values.shape != (total,):
        raise StepBatchError(f"column {name} has shape {values.shape} but n_tokens sums to {total}; give one per token")
    row_of_token = np.repeat(np.arange(len(rows)), n_tokens)
    rows.refuse(row_of_token[~np.isfinite(values)], f"{name} of one of its tokens is not a finite number")
    return values


def count_column(name: str, column: ArrayLike, rows: RowNames) -> Ints:
    """Return one whole number, 0 or more, per row."""
    values = float_column(name, column, rows)
    rows.refuse(
        np.flatnonzero((values < 0) | (values != np.floor(values))), f"{name} must be a whole number, 0 or more"
    )
    return values.astype(np.int64)


def switch_column(name: str, column: ArrayLike, rows: RowNames) -> Bools:
    """Return true or false per row; 1 and 0 are accepted too, other values are not."""
    values = _array(name, column, "true or false")
    if values.shape != (len(rows),):
        raise StepBatchError(
            f"column {name} has shape {values.shape} but step has {len(rows)} rows; give equal lengths"
        )
    if values.dtype.kind in "biuf":
        good = (values == 0) | (values == 1)
    else:  # a mixture of types, which NumPy may have turned into text
        items = np.asarray(column, dtype=np.object_)
        good = np.array([isinstance(item, int | float | np.bool_ | np.number) and item in (0, 1) for item in items])
    rows.refuse(np.flatnonzero(~good), f"{name} is neither true nor false; give booleans")
    return values.astype(np.bool_)


def _numbers(name: str, column: ArrayLike) -> Floats:
    values = _array(name, column, "numbers")
    if values.dtype.kind not in "biuf":
        raise StepBatchError(f"column {name} must hold numbers, not {values.dtype}")
    return values.astype(np.float64)


def _array(name: str, column: ArrayLike, content: str) -> NDArray[Any]:
    try:
        return np.asarray(column)
    except (TypeError, ValueError) as error:
        raise StepBatchError(f"column {name} must hold {content}: {error}") from None
