"""The graph of a rollout group: success, distances to it, edges and Bellman values. Arrays are in the batch's order.

The nodes are the states of the group, and each step is an edge from its state to the state behind it. An edge that
was taken several times counts once for distances and every time in a mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.columns import key_columns
from openrlhf_gagpo.credit.sets import Bools, Floats, Ints, Sets
from openrlhf_gagpo.errors import EstimatorError

__all__ = ["bellman_values", "distances", "edges", "next_states", "passed_through", "succeeded"]


def succeeded(batch: StepBatch, above: float) -> Bools:
    """Return per trajectory whether it reached its goal.

    That is the column ``success``, or without it whether the sum of the rewards is above ``above``. Penalties never
    count.
    """
    if batch.success is not None:
        return batch.success[batch.trajectories.start]
    return batch.trajectories.sum(batch.reward) > above


def next_states(batch: StepBatch) -> Ints:
    """Return for each row the number in ``batch.states`` of the state behind it."""
    behind = np.roll(batch.states.label, -1)
    behind[batch.trajectories.is_last] = batch.final_state
    return behind


def distances(source: Ints, target: Ints, sink: int, nodes: int) -> Floats:
    """Return for each of ``nodes`` nodes the fewest edges to ``sink``, infinity where no path leads there.

    Edges go from ``source`` to ``target``. The search is breadth-first from the sink; each pass of the loop reaches the
    nodes of one distance.
    """
    distance = np.full(nodes, np.inf)
    distance[sink] = reached = 0
    source, target = source[source != sink], target[source != sink]
    while (found := distance[target] == reached).any():
        reached += 1
        distance[source[found]] = reached
        left = np.isinf(distance[source])
        source, target = source[left], target[left]
    return distance


def edges(batch: StepBatch, kind: str) -> Sets:
    """Divide the rows into edges: steps from one state with the same ``kind``, which is ``action`` or ``next_state``.

    Raises:
        EstimatorError: ``kind`` is ``action`` and the batch was built without actions.
    """
    if kind == "next_state":
        number = next_states(batch)
    elif batch.action is None:
        raise EstimatorError(
            "the step batch has no column action, which edge action compares; build the batch with it, or set edge to "
            "next_state"
        )
    else:
        _, (number,) = key_columns(len(batch), action=batch.action)
    distinct, label = np.unique(batch.states.label * (number.max() + 1) + number, return_inverse=True)
    return Sets.of_labels(label, len(distinct))


def passed_through(batch: StepBatch, rewards: Floats, value: Floats, end_value: Floats, gamma: float) -> Floats:
    """Replace the values of states visited once by reward plus discounted next value.

    Their TD residual is then 0 and later credit passes through them undistorted. The value in a chain of such states is
    a discounted sum up to the next shared state. ``value`` has one number per row. ``end_value`` has one per
    trajectory, the value after its last step, and stays as it is also where the final state was visited once.
    """
    alone = batch.states.expand(batch.states.count) == 1
    after_end = batch.trajectories.following(np.zeros(len(batch)), end_value)
    own = np.where(alone, rewards + gamma * after_end, value)
    return batch.trajectories.backward_sum(own, np.where(alone, gamma, 0.0))


def bellman_values(batch: StepBatch, rewards: Floats, end_value: Floats, gamma: float) -> Floats:
    """Return V of each row's state, where ``V(s) = mean of r_t + gamma V(s_{t+1})`` over all visits of s in the group.

    After the last step of a trajectory V is its ``end_value``. Every step leads to an end, so there is exactly one
    solution, also for gamma = 1.

    States visited once are eliminated first: what follows a step is a constant plus a multiple of V in the next shared
    state of its trajectory. The shared states of each group remain, as one dense system of linear equations.
    """
    state, visits = batch.states.label, batch.states.count
    chain = passed_through(batch, rewards, np.zeros(len(batch)), end_value, gamma)
    constant = rewards + gamma * batch.trajectories.following(chain, end_value)
    onward, steps = _next_shared(batch)
    factor = np.where(steps > 0, gamma**steps, 0.0)
    value = np.zeros(len(visits))
    for rows in _shared_rows(batch):
        states, here = np.unique(state[rows], return_inverse=True)
        there = np.searchsorted(states, state[onward[rows]])
        size, visit = len(states), 1.0 / visits[state[rows]]
        passage = np.bincount(here * size + there, visit * factor[rows], minlength=size**2).reshape(size, size)
        gained = np.bincount(here, visit * constant[rows], minlength=size)
        value[states] = np.linalg.solve(np.eye(size) - passage, gained)
    return passed_through(batch, rewards, batch.states.expand(value), end_value, gamma)


def _next_shared(batch: StepBatch) -> tuple[Ints, Ints]:
    """Return the next row of each row's trajectory whose state has several visits, and the number of steps to it.

    A row without one gets itself and 0.
    """
    row = np.arange(len(batch))
    shared = batch.states.expand(batch.states.count) > 1
    from_here = np.minimum.accumulate(np.where(shared, row, len(batch))[::-1])[::-1]
    later = np.append(from_here[1:], len(batch))
    end = batch.trajectories.expand(batch.trajectories.start + batch.trajectories.count)
    onward = np.where(later < end, later, row)
    return onward, onward - row


def _shared_rows(batch: StepBatch) -> Iterator[Ints]:
    """Yield for each group that has any the rows whose state has several visits."""
    shared = batch.states.expand(batch.states.count) > 1
    per_group = batch.groups.sum(shared).astype(np.int64)
    for rows in np.split(np.flatnonzero(shared), np.cumsum(per_group)[:-1]):
        if len(rows):
            yield rows
