"""Plain JSON lines of steps, as ``gagpo credit`` reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.step_batches import Trajectory, columns_of

__all__ = ["EXAMPLE", "rows_of", "write_rows"]

EXAMPLE: list[Trajectory] = [
    ("task", "a", "ABCz", [0, 0, 8]),
    ("task", "b", "ABDz", [0, 0, 0]),
    ("task", "c", "ACz", [0, 8]),
]
"""The worked example of docs/algorithms.md."""

REQUIRED = ("group", "traj", "step", "state", "reward")


def rows_of(trajectories: Sequence[Trajectory], columns: Sequence[str] = REQUIRED, **more: list[Any]) -> list[dict]:
    """One object per step with these columns of ``columns_of``, and ``more`` of any kind."""
    known = columns_of(trajectories)
    chosen = {name: known[name] for name in columns} | more
    return [dict(zip(chosen, values, strict=True)) for values in zip(*chosen.values(), strict=True)]


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
