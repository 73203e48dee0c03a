"""The input of every advantage estimator: environment steps as columns, with explicit identity and checked order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openrlhf_gagpo.credit.layout import Layout, build_layout, factorise, place
from openrlhf_gagpo.credit.sets import Floats, Ints
from openrlhf_gagpo.errors import StepBatchError

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.types import Episode, Step

__all__ = [
    "INVALID_RULES",
    "StepBatch",
]

Keys = NDArray[np.object_]
Bools = NDArray[np.bool_]


INVALID_RULES: Mapping[str, Callable[[Step], bool]] = {
    "format": lambda step: not step.format_valid,
    "action": lambda step: not step.admissible,
    "either": lambda step: not (step.format_valid and step.admissible),
}
"""What can make a step invalid: a malformed response, an action the environment did not recognise, or either."""


@dataclass(frozen=True, eq=False)
class StepBatch:
    """N environment steps; build it with ``from_columns`` or ``from_episodes``, which check it.

    Columns have length N and keep the order they were given in; any order will do.
    """

    group: Keys
    """Rollout group: trajectories of one task that are compared with each other."""
    traj: Keys
    """Trajectory; the same id never appears in two groups."""
    step: Ints
    """0-based position in the trajectory."""
    state: Keys
    """Key of the state the action was taken in; equal keys inside a group are the same state."""
    next_state: Keys
    """Key of the state after the action, the final one included."""
    reward: Floats
    """Environment reward of the step, no penalty."""
    terminated: Bools
    truncated: Bools
    invalid: Floats
    """How many times the invalid penalty the step costs: 1 where the action is invalid, 0 where it is not."""
    n_tokens: Ints
    """Trained response tokens of the step."""
    value: Floats | None
    """Critic estimate for ``state``, where there is a critic."""
    layout: Layout
    sorted_reward: Floats
    """``reward`` in the order of ``layout``; so is ``sorted_invalid``."""
    sorted_invalid: Floats

    def __len__(self) -> int:
        return len(self.step)

    @classmethod
    def from_columns(
        cls,
        *,
        group: Sequence[object] | NDArray,
        traj: Sequence[object] | NDArray,
        step: ArrayLike,
        state: Sequence[object] | NDArray,
        next_state: Sequence[object] | NDArray,
        reward: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        invalid: ArrayLike | None = None,
        n_tokens: ArrayLike | None = None,
        value: ArrayLike | None = None,
        allow_open: bool = False,
    ) -> StepBatch:
        """Check and index the columns of N steps.

        ``invalid`` defaults to 0 and ``n_tokens`` to 1. With ``allow_open`` the last row of a trajectory may be neither
        terminated nor truncated; estimators then treat it as terminated.

        Raises ``StepBatchError`` naming the first offending row: a gap or repeat in the steps of a trajectory, a
        trajectory in two groups, an end before the last step, both ends at once, no end, a next state that is not the
        following row's state, a number that is not finite; or naming the column whose length or type is wrong.
        """
        step_column = np.asarray(step)
        if step_column.ndim != 1 or len(step_column) == 0:
            raise StepBatchError("a step batch needs at least one row and one-dimensional columns")
        n = len(step_column)
        names = {
            "group": _key_column("group", group, n),
            "traj": _key_column("traj", traj, n),
            "state": _key_column("state", state, n),
            "next_state": _key_column("next_state", next_state, n),
        }
        if step_column.dtype.kind not in "iu":
            raise StepBatchError(f"column step must hold integers, not {step_column.dtype}")
        steps = step_column.astype(np.int64)
        identity = _Identity(names["group"], names["traj"], steps)
        numbers = {
            "reward": _float_column("reward", reward, identity),
            "invalid": np.zeros(n) if invalid is None else _float_column("invalid", invalid, identity),
        }
        _refuse(numbers["invalid"] < 0, "invalid must be 0 or more", identity=identity)
        tokens = np.ones(n) if n_tokens is None else _float_column("n_tokens", n_tokens, identity)
        _refuse((tokens < 0) | (tokens != np.floor(tokens)), "n_tokens must be a whole number, 0 or more", identity)
        ends = {
            "terminated": _bool_column("terminated", terminated, n),
            "truncated": _bool_column("truncated", truncated, n),
        }
        layout = _check_and_index(names, steps, ends["terminated"], ends["truncated"], identity, allow_open)
        return cls(
            step=steps,
            n_tokens=tokens.astype(np.int64),
            value=None if value is None else _float_column("value", value, identity),
            layout=layout,
            sorted_reward=layout.sort(numbers["reward"]),
            sorted_invalid=layout.sort(numbers["invalid"]),
            **names,
            **numbers,
            **ends,
        )

    @classmethod
    def from_episodes(
        cls, episodes: Sequence[Episode], *, invalid: str | Callable[[Step], float] = "format"
    ) -> StepBatch:
        """Rows of played episodes: episodes in the given order, each by rising step index.

        ``invalid`` is a name in ``INVALID_RULES`` or a function of a step that gives its share of the penalty. An
        episode stopped because its next prompt would not fit counts as truncated. Episodes without steps give no rows.

        Raises ``StepBatchError`` for a faulted episode, which must leave its group first, and as ``from_columns``.
        """
        rule = invalid if callable(invalid) else INVALID_RULES.get(invalid)
        if rule is None:
            raise StepBatchError(
                f"unknown rule {invalid!r} for invalid steps; choose one of {', '.join(INVALID_RULES)}"
            )
        faulted = next((episode for episode in episodes if episode.faulted), None)
        if faulted is not None:
            raise StepBatchError(
                f"episode {faulted.trajectory!r} of group {faulted.group!r} ended by an environment fault; "
                "remove faulted episodes before computing advantages"
            )
        pairs = [(episode, step) for episode in episodes for step in episode.steps]
        cut = [
            step is episode.steps[-1] and episode.end_reason == "prompt_too_long" and not step.terminated
            for episode, step in pairs
        ]
        return cls.from_columns(
            group=[episode.group for episode, _ in pairs],
            traj=[episode.trajectory for episode, _ in pairs],
            step=[step.index for _, step in pairs],
            state=[step.state_key for _, step in pairs],
            next_state=[step.next_state_key for _, step in pairs],
            reward=[step.reward for _, step in pairs],
            terminated=[step.terminated for _, step in pairs],
            truncated=[step.truncated or ended for (_, step), ended in zip(pairs, cut, strict=True)],
            invalid=[float(rule(step)) for _, step in pairs],
            n_tokens=[len(step.response_ids) for _, step in pairs],
        )


@dataclass(frozen=True)
class _Identity:
    group: Keys
    traj: Keys
    step: Ints

    def of(self, row: int) -> str:
        return f"row {row} (group {self.group[row]!r}, trajectory {self.traj[row]!r}, step {self.step[row]})"


def _key_column(name: str, column: Sequence[object] | NDArray, n: int) -> Keys:
    """Keys as an object array: a fixed-width string array would pad every key to the longest observation."""
    values = column.tolist() if isinstance(column, np.ndarray) else column
    if len(values) != n:
        raise StepBatchError(f"column {name} has {len(values)} rows but step has {n}; give all columns equal lengths")
    return np.fromiter(values, dtype=np.object_, count=n)


def _float_column(name: str, column: ArrayLike, identity: _Identity) -> Floats:
    values = _array(name, column, np.float64, "numbers", len(identity.step))
    _refuse(~np.isfinite(values), f"{name} is not a finite number", identity)
    return values


def _bool_column(name: str, column: ArrayLike, n: int) -> Bools:
    return _array(name, column, np.bool_, "true or false", n)


def _array(name: str, column: ArrayLike, dtype: type[np.generic], content: str, n: int) -> NDArray:
    try:
        values = np.array(column, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise StepBatchError(f"column {name} must hold {content}: {error}") from None
    if values.shape != (n,):
        raise StepBatchError(f"column {name} has shape {values.shape} but step has {n} rows; give equal lengths")
    return values


def _refuse(bad: Bools, what: str, identity: _Identity) -> None:
    if bad.any():
        raise StepBatchError(f"{identity.of(int(np.argmax(bad)))}: {what}")


def _number(*columns: Keys) -> list[Ints]:
    try:
        return factorise(*columns)
    except TypeError as error:
        raise StepBatchError(f"group, traj, state and next_state need hashable keys: {error}") from None


def _differ(column: Keys, expected: Keys) -> Bools:
    try:
        return column != expected
    except ValueError as error:  # an array among the keys
        raise StepBatchError(f"group, traj, state and next_state need hashable keys: {error}") from None


def _check_and_index(
    names: Mapping[str, Keys],
    step: Ints,
    terminated: Bools,
    truncated: Bools,
    identity: _Identity,
    allow_open: bool,
) -> Layout:
    """Check that the rows are whole trajectories and index them.

    Keys can be long texts, so each is hashed only where it needs a number: a trajectory's group and each following
    state are merely compared with the key they must equal, which is often the same object.
    """
    (traj,) = _number(names["traj"])
    first_row = np.empty(int(traj.max()) + 1, dtype=np.int64)
    first_row[traj[::-1]] = np.arange(len(traj))[::-1]
    home = names["group"][first_row]
    (trajectory_group,) = _number(home)
    _refuse(
        _differ(names["group"], home[traj]),
        "its trajectory already has rows in another group; make trajectory ids unique",
        identity,
    )
    _refuse(step < 0, "steps count from 0", identity)
    lengths = np.bincount(traj)
    trajectories, position = place(traj, step, lengths, trajectory_group)
    inside = step < lengths[traj]
    order = np.full(len(step), -1, dtype=np.int64)
    order[position[inside][::-1]] = np.flatnonzero(inside)[::-1]
    if (order < 0).any():
        repeated = inside.copy()
        repeated[inside] = order[position[inside]] != np.flatnonzero(inside)
        _refuse(repeated, "this step of the trajectory appears twice; remove duplicated rows", identity)
        _refuse(~inside, "steps before it are missing; a trajectory needs all steps from 0", identity)

    is_last = step == lengths[traj] - 1
    ended = terminated | truncated
    _refuse(terminated & truncated, "both terminated and truncated; a step ends in one way", identity)
    _refuse(ended & ~is_last, "it ends the episode but the trajectory has later steps", identity)
    if not allow_open:
        _refuse(
            is_last & ~ended,
            "the last step is neither terminated nor truncated; the episode is incomplete",
            identity,
        )
    following = order[np.minimum(position + 1, len(order) - 1)]
    _refuse(
        _differ(names["next_state"], names["state"][following]) & ~is_last,
        "its next_state is not the state of the following step",
        identity,
    )
    last_row = order[trajectories.start + trajectories.count - 1]
    state, final_state = _number(names["state"], names["next_state"][last_row])
    return build_layout(
        order=order,
        trajectories=trajectories,
        trajectory_group=np.sort(trajectory_group),
        step=step[order],
        state=state[order],
        final_state=final_state,
        truncated=truncated[last_row],
    )
