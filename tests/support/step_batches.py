"""Made-up trajectories as columns of a step batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from openrlhf_gagpo.credit import CreditResult, StepBatch, get

__all__ = ["Trajectory", "batch_of", "columns_of", "credit_of", "shuffled", "trajectory_lists"]

Trajectory = tuple[str, str, Sequence[str], Sequence[float]]
"""Group, name, one key per visited state (the final one included), rewards."""

_ROW_COLUMNS = ("group", "traj", "step", "state", "next_state", "reward", "terminated", "truncated", "action")


def columns_of(trajectories: Sequence[Trajectory]) -> dict[str, list[Any]]:
    """The columns of a played batch; a rewarded last step terminates, any other is truncated, actions name a goal."""
    columns: dict[str, list[Any]] = {name: [] for name in _ROW_COLUMNS}
    for group, name, states, rewards in trajectories:
        for step, reward in enumerate(rewards):
            last = step == len(rewards) - 1
            here, there, won = states[step], states[step + 1], reward > 0
            row = (group, name, step, here, there, reward, last and won, last and not won, f"go to {there}")
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return columns


def batch_of(trajectories: Sequence[Trajectory], **extra: Any) -> StepBatch:
    return StepBatch.from_columns(**columns_of(trajectories), **extra)


def credit_of(batch: StepBatch, name: str, **options: Any) -> CreditResult:
    estimator = get(name)
    return estimator(batch, estimator.options_cls(**options))


_TOKEN_COLUMNS = ("log_prob", "token_value")


def shuffled(columns: dict[str, Any], order: np.ndarray) -> dict[str, Any]:
    """Columns in another row order; those of ``_TOKEN_COLUMNS`` have ``n_tokens`` entries per row."""
    out = {name: [column[row] for row in order] for name, column in columns.items() if name not in _TOKEN_COLUMNS}
    for name in set(columns).intersection(_TOKEN_COLUMNS):
        responses = np.split(np.asarray(columns[name]), np.cumsum(columns["n_tokens"])[:-1])
        out[name] = np.concatenate([responses[row] for row in order])
    return out


@st.composite
def trajectory_lists(draw: st.DrawFn, letters: str = "ABCDE") -> list[Trajectory]:
    """Up to seven short trajectories in up to three groups, over few states, with few distinct rewards."""
    out: list[Trajectory] = []
    for number in range(draw(st.integers(1, 7))):
        length = draw(st.integers(1, 6))
        states = "".join(draw(st.lists(st.sampled_from(letters), min_size=length + 1, max_size=length + 1)))
        rewards = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, -0.3, 10.0]), min_size=length, max_size=length))
        out.append((f"g{draw(st.integers(0, 2))}", f"t{number}", states, rewards))
    return out
