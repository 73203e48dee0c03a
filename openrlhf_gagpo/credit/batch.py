"""The input of every advantage estimator: environment steps as columns, with checked identity and one fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openrlhf_gagpo.credit.columns import (
    KeyColumn,
    Keys,
    RowNames,
    count_column,
    float_column,
    key_columns,
    step_column,
    switch_column,
    token_column,
)
from openrlhf_gagpo.credit.sets import Bools, Floats, Ints, Sequences, Sets
from openrlhf_gagpo.errors import EstimatorError

__all__ = ["CRITIC_COLUMNS", "MODEL_COLUMNS", "StepBatch"]

MODEL_COLUMNS = ("value", "token_value", "ig", "log_prob")
"""Columns that a model has to compute; an estimator gets those that it declares in ``needs``."""
CRITIC_COLUMNS = frozenset({"value", "token_value"})
"""Those of them that a critic computes."""
_OPTIONAL = ("action", "success", *MODEL_COLUMNS)


@dataclass(frozen=True, eq=False)
class StepBatch:
    """N environment steps, sorted by group, then trajectory, then step; build it with ``from_columns``.

    Groups and trajectories are in the order of their first rows. An estimator sees only this order; its result is put
    back into the order in which the rows were given.
    """

    order: Ints
    """Index of the given row at each position."""

    group: Keys
    """Rollout group: trajectories of one task that are compared with each other."""
    traj: Keys
    """Trajectory; the same key never appears in two groups."""
    step: Ints
    """0-based position in the trajectory."""
    state: Keys
    """Key of the state in which the action was taken; equal keys inside a group are the same state."""
    next_state: Keys
    """Key of the state after the action, the final one included."""
    reward: Floats
    """Environment reward of the step, no penalty."""
    terminated: Bools
    truncated: Bools
    invalid: Bools
    """Whether the response was malformed, that is, not in the form that the prompt asks for."""
    inadmissible: Bools
    """Whether the environment did not recognise the action."""
    n_tokens: Ints
    """Trained response tokens of the step."""

    action: Keys | None
    """What the agent did; None if the batch was built without actions."""
    success: Bools | None
    """Whether the step's episode reached its goal, as the environment says; None if that is not known."""
    value: Floats | None
    """Critic's estimate at the end of the step's prompt."""
    token_value: Floats | None
    """Critic's estimate before every trained token; see ``tokens``. A step's first one is its ``value``."""
    ig: Floats | None
    """Information gain of the step, NaN where it has none."""
    log_prob: Floats | None
    """Log-probability of every trained token under the policy before the update; see ``tokens``."""

    groups: Sequences
    """The rows of each group."""
    trajectories: Sequences
    """The rows of each trajectory."""
    states: Sets
    """The visits of each state: the rows of one group whose action was taken in it. Final states are numbered too; a
    state in which no action was taken has no visits."""
    trajectory_groups: Sequences
    """The trajectories of each group."""
    final_state: Ints
    """Per trajectory: number in ``states`` of its final state."""

    def __len__(self) -> int:
        return len(self.step)

    @classmethod
    def from_columns(
        cls,
        *,
        group: KeyColumn,
        traj: KeyColumn,
        step: ArrayLike,
        state: KeyColumn,
        next_state: KeyColumn,
        reward: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        invalid: ArrayLike | None = None,
        inadmissible: ArrayLike | None = None,
        n_tokens: ArrayLike | None = None,
        action: KeyColumn | None = None,
        success: ArrayLike | None = None,
        value: ArrayLike | None = None,
        token_value: ArrayLike | None = None,
        ig: ArrayLike | None = None,
        log_prob: ArrayLike | None = None,
        allow_open: bool = False,
    ) -> StepBatch:
        """Check, sort and index the columns of N steps, given in any order.

        Args:
            invalid: whether the response was malformed; by default none was.
            inadmissible: whether the environment did not recognise the action; by default it recognised all.
            n_tokens: 1 each by default.
            success: the same for all steps of a trajectory.
            ig: NaN for steps without an information gain.
            token_value, log_prob: one number per trained token, row after row in the order of the given rows.
            allow_open: whether the last step of a trajectory may be neither terminated nor truncated; estimators then
                treat it as terminated.

        Raises:
            StepBatchError: a column has the wrong length or type, or a row is wrong, in which case the message names
                the first such row. A row is wrong if it leaves a gap or repeats a step of its trajectory, its
                trajectory is in two groups, it ends the trajectory before the last step or in both ways, the last
                step does not end it, its success is not that of its trajectory, its next state is not the state of
                the following row, or a value is not a finite number or not a truth value.
        """
        steps = step_column(step)
        n = len(steps)
        groups, (group_number,) = key_columns(n, group=group)
        trajs, (traj_number,) = key_columns(n, traj=traj)
        states, (state_number, next_number) = key_columns(n, state=state, next_state=next_state)
        rows = RowNames(groups[group_number], trajs[traj_number], steps)
        order = _order(rows, group_number, traj_number)

        no = np.zeros(n, dtype=np.bool_)
        tokens = np.ones(n, dtype=np.int64) if n_tokens is None else count_column("n_tokens", n_tokens, rows)
        token_order = _token_order(order, tokens)
        trajectories = _runs(traj_number[order])
        first, last = trajectories.start, trajectories.start + trajectories.count - 1
        group_number, state_number, next_number = group_number[order], state_number[order], next_number[order]
        visits, final_state = _states(group_number, state_number, last, next_number[last])
        batch = cls(
            order=order,
            group=rows.group[order],
            traj=rows.traj[order],
            step=steps[order],
            state=states[state_number],
            next_state=states[next_number],
            reward=float_column("reward", reward, rows)[order],
            terminated=switch_column("terminated", terminated, rows)[order],
            truncated=switch_column("truncated", truncated, rows)[order],
            invalid=no if invalid is None else switch_column("invalid", invalid, rows)[order],
            inadmissible=no if inadmissible is None else switch_column("inadmissible", inadmissible, rows)[order],
            n_tokens=tokens[order],
            action=None if action is None else _keys("action", action, n)[order],
            success=None if success is None else switch_column("success", success, rows)[order],
            value=None if value is None else float_column("value", value, rows)[order],
            token_value=None
            if token_value is None
            else token_column("token_value", token_value, tokens, rows)[token_order],
            ig=None if ig is None else float_column("ig", ig, rows, nan=True)[order],
            log_prob=None if log_prob is None else token_column("log_prob", log_prob, tokens, rows)[token_order],
            groups=_runs(group_number),
            trajectories=trajectories,
            states=visits,
            trajectory_groups=_runs(group_number[first]),
            final_state=final_state,
        )
        batch._check_ends(rows, allow_open)
        moved = next_number != np.roll(state_number, -1)
        rows.refuse(order[moved & ~trajectories.is_last], "its next_state is not the state of the following step")
        if batch.success is not None:
            other = batch.success != trajectories.expand(batch.success[first])
            rows.refuse(order[other], "its success is not that of the trajectory's first step")
        return batch

    def required(self, name: str) -> NDArray[Any]:
        """Return the optional column ``name``. Raises ``EstimatorError`` if the batch was built without it."""
        column: NDArray[Any] | None = {known: getattr(self, known) for known in _OPTIONAL}.get(name)
        if column is None:
            source = (
                "only a model can compute it, and it is not recorded; choose other options or another estimator"
                if name in MODEL_COLUMNS
                else "build the batch with it"
            )
            raise EstimatorError(f"the step batch has no column {name}; {source}")
        return column

    @cached_property
    def _as_given(self) -> bool:
        """Whether the rows were given in the batch's order."""
        return bool((np.diff(self.order) > 0).all())

    @cached_property
    def tokens(self) -> Sequences:
        """The trained tokens of each row, in the order of ``log_prob`` and of every quantity per token."""
        return Sequences.of_lengths(self.n_tokens)

    def restore(self, values: NDArray[Any]) -> NDArray[Any]:
        """Put one number per row into the order in which the rows were given; returns ``values`` if it is the same."""
        if self._as_given:
            return values
        out = np.empty_like(values)
        out[self.order] = values
        return out

    def restore_tokens(self, values: NDArray[Any]) -> NDArray[Any]:
        """Put one number per trained token into the order in which the rows were given."""
        if self._as_given:
            return values
        out = np.empty_like(values)
        out[_token_order(self.order, self.restore(self.n_tokens))] = values
        return out

    def _check_ends(self, rows: RowNames, allow_open: bool) -> None:
        is_last = self.trajectories.is_last
        ended = self.terminated | self.truncated
        rows.refuse(
            self.order[self.terminated & self.truncated], "both terminated and truncated; a step ends in one way"
        )
        rows.refuse(self.order[ended & ~is_last], "it ends the episode but the trajectory has later steps")
        if not allow_open:
            rows.refuse(
                self.order[is_last & ~ended],
                "the last step is neither terminated nor truncated; the episode is incomplete",
            )


def _keys(name: str, column: KeyColumn, n: int) -> Keys:
    keys, (number,) = key_columns(n, **{name: column})
    return keys[number]


def _order(rows: RowNames, group: Ints, traj: Ints) -> Ints:
    """Return the order of the rows by group, trajectory and step, and check for gaps and repeats in trajectories."""
    first_row = np.unique(traj, return_index=True)[1]
    rows.refuse(
        np.flatnonzero(group != group[first_row][traj]),
        "its trajectory already has rows in another group; make trajectory ids unique",
    )
    rows.refuse(np.flatnonzero(rows.step < 0), "steps count from 0")
    order: Ints = np.lexsort((rows.step, traj, group))
    step = rows.step[order]
    is_first = np.diff(traj[order], prepend=-1) != 0
    before = np.where(is_first, -1, np.roll(step, 1))
    rows.refuse(order[step == before], "this step of the trajectory appears twice; remove duplicated rows")
    rows.refuse(order[step != before + 1], "steps before it are missing; a trajectory needs all steps from 0")
    return order


def _runs(labels: Ints) -> Sequences:
    """Return the runs of equal labels."""
    start = np.flatnonzero(np.diff(labels, prepend=-1))
    return Sequences.of_lengths(np.diff(start, append=len(labels)))


def _states(group: Ints, state: Ints, last: Ints, final: Ints) -> tuple[Sets, Ints]:
    """Number the pairs of group and state key, for sorted rows and for the ``final`` keys after the ``last`` rows."""
    keys = int(max(state.max(), final.max())) + 1
    pairs = np.concatenate([group * keys + state, group[last] * keys + final])
    distinct, number = np.unique(pairs, return_inverse=True)
    return Sets.of_labels(number[: len(state)], len(distinct)), number[len(state) :]


def _token_order(order: Ints, n_tokens: Ints) -> Ints:
    """Return the index of the given token at each position once the given rows are put into ``order``."""
    given_start = np.cumsum(n_tokens) - n_tokens
    tokens = Sequences.of_lengths(n_tokens[order])
    shift: Ints = tokens.expand(given_start[order] - tokens.start)
    return np.arange(len(shift)) + shift
