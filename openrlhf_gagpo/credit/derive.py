"""Columns that follow from others, for steps recorded by another program that does not write them.

These columns are lists with one entry per step, in any order; keys are text, see ``text_keys``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from openrlhf_gagpo.errors import StepBatchError

__all__ = ["following_states", "last_steps", "step_ends", "text_keys"]


def text_keys(name: str, column: Iterable[object]) -> list[str]:
    """Return the keys of a column as text.

    Raises:
        StepBatchError: the keys are neither all text nor all whole numbers, so that 1 and "1" might be mixed up.
    """
    keys = [key.item() if isinstance(key, np.generic) else key for key in column]
    types = {type(key) for key in keys}
    if not types <= {str} and types != {int}:
        found = ", ".join(sorted(kind.__name__ for kind in types))
        raise StepBatchError(
            f"keys in column {name} must be all text or all whole numbers, not {found}; give a text key to each"
        )
    return list(map(str, keys))


def last_steps(traj: Sequence[str], step: Sequence[int]) -> list[bool]:
    """Return whether each step is the last one of its trajectory."""
    places = set(zip(traj, step, strict=True))
    return [(name, number + 1) not in places for name, number in zip(traj, step, strict=True)]


def following_states(traj: Sequence[str], step: Sequence[int], state: Sequence[str]) -> list[str]:
    """Return the state after each step: the one of the trajectory's next step.

    After the last step it is a state of that trajectory alone, in which no step was taken.
    """
    at = dict(zip(zip(traj, step, strict=True), state, strict=True))
    visited = set(state)
    following = [at.get((name, number + 1)) for name, number in zip(traj, step, strict=True)]
    return [_end_of(name, visited) if after is None else after for name, after in zip(traj, following, strict=True)]


def step_ends(
    traj: Sequence[str],
    step: Sequence[int],
    terminated: Sequence[bool] | None = None,
    truncated: Sequence[bool] | None = None,
) -> tuple[list[bool], list[bool]]:
    """Return which steps terminate and which truncate their trajectory, from either column or from neither.

    A last step that is not in the given column ended the other way; without both columns every last step terminates.
    """
    last = last_steps(traj, step)
    if terminated is None:
        cut = [False] * len(last) if truncated is None else list(truncated)
        return [end and not other for end, other in zip(last, cut, strict=True)], cut
    if truncated is None:
        return list(terminated), [end and not other for end, other in zip(last, terminated, strict=True)]
    return list(terminated), list(truncated)


def _end_of(traj: str, visited: set[str]) -> str:
    name = f"(end of {traj})"
    while name in visited:
        name = f"({name})"
    return name
