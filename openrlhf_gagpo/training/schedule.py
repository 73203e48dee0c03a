"""The tasks and seeds of an iteration, as pure functions of the run's seed, so that resuming needs no saved state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from openrlhf_gagpo.rollout.types import EpisodeRequest
from openrlhf_gagpo.seeds import stable_seed

__all__ = [
    "iteration_tasks",
    "offset_warmup",
    "refill_tasks",
    "training_requests",
]


def iteration_tasks(tasks: Sequence[str], per_iteration: int, iteration: int, seed: int) -> list[str]:
    """Return the tasks of one iteration (counted from 1), taken from endless passes with a new order each."""
    return [tasks[place] for place in _places(len(tasks), per_iteration, iteration, seed)]


def refill_tasks(tasks: Sequence[str], per_iteration: int, iteration: int, refill: int, seed: int) -> list[str]:
    """Return the tasks from which an iteration replaces groups for the ``refill``-th time (counted from 1).

    They are those that ``iteration_tasks`` has not drawn, in an order of the iteration's own, and none comes again
    before each has been drawn. The result does not depend on how many tasks earlier draws used.
    """
    drawn = set(_places(len(tasks), per_iteration, iteration, seed))
    order = np.random.default_rng(stable_seed(seed, "refill", iteration)).permutation(len(tasks))
    rest = [int(place) for place in order if place not in drawn] or order.tolist()
    start = (refill - 1) * per_iteration
    return [tasks[rest[position % len(rest)]] for position in range(start, start + per_iteration)]


def _places(count: int, per_iteration: int, iteration: int, seed: int) -> list[int]:
    start = (iteration - 1) * per_iteration
    orders: dict[int, np.ndarray] = {}
    chosen = []
    for position in range(start, start + per_iteration):
        epoch, offset = divmod(position, count)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(count)
        chosen.append(int(orders[epoch][offset]))
    return chosen


def training_requests(
    tasks: Sequence[str], members: int, iteration: int, seed: int, first: int = 0
) -> list[EpisodeRequest]:
    """Return the requests of one iteration: per task a group of ``members`` episodes with one environment seed.

    Args:
        first: number of the first task's group in the iteration.
    """
    return [
        EpisodeRequest(
            task=task,
            group=f"i{iteration}g{index}",
            trajectory=f"i{iteration}g{index}t{member}",
            env_seed=stable_seed(seed, "env", iteration, index),
            sampling_seed=stable_seed(seed, "sampling", iteration, index, member),
        )
        for index, task in enumerate(tasks, start=first)
        for member in range(members)
    ]


class Scheduler(Protocol):
    """The part of torch's learning-rate schedules that is used here."""

    last_epoch: int

    def step(self) -> None: ...


def offset_warmup(scheduler: Scheduler, warmup_ratio: float) -> None:
    """Start a fresh schedule with warm-up at its second value, because the first is 0 and would waste an iteration."""
    if warmup_ratio > 0 and scheduler.last_epoch == 0:
        with warnings.catch_warnings():
            # Torch warns unless an optimizer step came first, but there is none before the first iteration.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)`")
            scheduler.step()
