"""Recorded steps, whichever file they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from openrlhf_gagpo.credit import EstimatorOptions, StepBatch
from openrlhf_gagpo.credit.sets import Ints

__all__ = ["Own", "Source", "Steps"]


@dataclass(frozen=True)
class Steps:
    """The steps of one iteration or one file, in the order of the file; every list has one entry per step."""

    columns: Mapping[str, list[Any]]
    """As ``StepBatch.from_columns`` takes them."""
    identity: Sequence[Mapping[str, Any]]
    """What names each step in the output: group, traj, step, state, and the iteration in a run."""
    recorded: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Credit that a run recorded, by ascending position of the step."""

    def __len__(self) -> int:
        return len(self.identity)

    def of_groups(self, group_min: int) -> Ints:
        """Return the steps of groups with at least ``group_min`` trajectories, as training chooses them."""
        trajectories: dict[Any, set[Any]] = {}
        for group, traj in zip(self.columns["group"], self.columns["traj"], strict=True):
            trajectories.setdefault(group, set()).add(traj)
        large = [len(trajectories[group]) >= group_min for group in self.columns["group"]]
        return np.flatnonzero(np.array(large, dtype=np.bool_))

    def batch(self, rows: Ints) -> StepBatch:
        """Build the batch of these steps."""
        given: dict[str, Any] = {name: [column[row] for row in rows] for name, column in self.columns.items()}
        return StepBatch.from_columns(**given)


@dataclass(frozen=True)
class Own:
    """The estimator that a run was trained with."""

    estimator: str
    options: EstimatorOptions


@dataclass(frozen=True)
class Source:
    """What is compared: steps that get credit together, such as those of one iteration, and where they come from."""

    title: str
    parts: Sequence[Steps]
    own: Own | None = None
    """None if the steps do not come from a run folder."""

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def identity(self) -> list[Mapping[str, Any]]:
        """What names each step, over all parts."""
        return [row for part in self.parts for row in part.identity]
