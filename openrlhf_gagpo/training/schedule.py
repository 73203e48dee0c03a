"""Which tasks an iteration plays, and with which seeds: pure functions of the run's seed, so resuming needs none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from openrlhf_gagpo.rollout.types import EpisodeRequest

__all__ = [
    "evaluation_requests",
    "evaluation_tasks",
    "iteration_tasks",
    "offset_warmup",
    "stable_seed",
    "training_requests",
]


def stable_seed(*parts: object) -> int:
    """A 31-bit seed that depends on all parts and nothing else."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 33


def iteration_tasks(tasks: Sequence[str], per_iteration: int, iteration: int, seed: int) -> list[str]:
    """Tasks of one iteration (counted from 1): the next piece of endless passes over all tasks, each shuffled anew."""
    start = (iteration - 1) * per_iteration
    orders: dict[int, np.ndarray] = {}
    chosen = []
    for position in range(start, start + per_iteration):
        epoch, offset = divmod(position, len(tasks))
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(len(tasks))
        chosen.append(tasks[orders[epoch][offset]])
    return chosen


def training_requests(tasks: Sequence[str], members: int, iteration: int, seed: int) -> list[EpisodeRequest]:
    """Requests of one iteration: for each task a rollout group of ``members`` episodes with one environment seed."""
    return [
        EpisodeRequest(
            task=task,
            group=f"i{iteration}g{index}",
            trajectory=f"i{iteration}g{index}t{member}",
            env_seed=stable_seed(seed, "env", iteration, index),
            sampling_seed=stable_seed(seed, "sampling", iteration, index, member),
        )
        for index, task in enumerate(tasks)
        for member in range(members)
    ]


def evaluation_tasks(tasks: Sequence[str], count: int | None) -> list[str]:
    """``count`` tasks evenly spaced over the split, in its order; all of them with None.

    Not the first ones: an environment may list its tasks kind by kind.
    """
    count = len(tasks) if count is None else min(count, len(tasks))
    return [tasks[position * len(tasks) // count] for position in range(count)]


def evaluation_requests(tasks: Sequence[str], samples: int, iteration: int, seed: int) -> list[EpisodeRequest]:
    """Requests that play every task ``samples`` times, in order, from starts that do not depend on the run's seed."""
    return [
        EpisodeRequest(
            task=task,
            group=f"eval{iteration}g{index}",
            trajectory=f"eval{iteration}g{index}t{sample}",
            env_seed=stable_seed("eval", task, sample),
            sampling_seed=stable_seed(seed, "eval", iteration, index, sample),
        )
        for index, task in enumerate(tasks)
        for sample in range(samples)
    ]


def offset_warmup(scheduler: Any, warmup_ratio: float) -> None:
    """Start a fresh schedule with warm-up at its second value: the first is 0 and would waste a whole iteration."""
    if warmup_ratio > 0 and scheduler.last_epoch == 0:
        scheduler.step()
