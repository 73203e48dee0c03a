"""The episodes that an evaluation plays, as pure functions of tasks and seeds."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_gagpo.rollout.types import EpisodeRequest
from openrlhf_gagpo.seeds import stable_seed

__all__ = ["evaluation_requests", "plays_greedily", "spread"]


def plays_greedily(choice: str, at_end: bool) -> bool:
    """Return whether an evaluation plays greedily besides sampling.

    Args:
        choice: one of those of ``--eval.greedy``.
        at_end: whether it is the one before or the one after the whole training.
    """
    return choice == "always" or (choice == "ends" and at_end)


def spread(tasks: Sequence[str], count: int | None) -> list[str]:
    """Return ``count`` tasks evenly spaced over the split, in its order; all of them with None.

    The first ``count`` would not be representative, because an environment may list its tasks kind by kind.
    """
    count = len(tasks) if count is None else min(count, len(tasks))
    return [tasks[position * len(tasks) // count] for position in range(count)]


def evaluation_requests(tasks: Sequence[str], samples: int, tag: object, seed: int) -> list[EpisodeRequest]:
    """Return requests that play every task ``samples`` times, in order, from starts that do not depend on ``seed``.

    Args:
        tag: distinguishes the evaluations of a run, such as the iteration before it.
    """
    return [
        EpisodeRequest(
            task=task,
            group=f"eval{tag}g{index}",
            trajectory=f"eval{tag}g{index}t{sample}",
            env_seed=stable_seed("eval", task, sample),
            sampling_seed=stable_seed(seed, "eval", tag, index, sample),
        )
        for index, task in enumerate(tasks)
        for sample in range(samples)
    ]
