"""A summary of an environment's tasks, small enough to leave the process that lists millions of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agent_envs.base import TextEnv
from agent_envs.errors import EnvError

__all__ = ["Survey", "survey"]


@dataclass(frozen=True)
class Survey:
    """Summary of the tasks of some splits."""

    lines: tuple[str, ...]
    """Lines for the user about the data."""
    first: Mapping[str, str]
    """The first task of each split that has tasks."""
    faults: tuple[str, ...]
    """Why some splits cannot be listed."""


def survey(make: Callable[[], TextEnv], splits: Sequence[str]) -> Survey:
    """List ``splits`` of a new instance; one that cannot be listed counts as empty."""
    env = make()
    try:
        tasks: dict[str, Sequence[str]] = {}
        faults = []
        for split in splits:
            try:
                tasks[split] = env.tasks(split)
            except (EnvError, ValueError) as error:
                faults.append(str(error))
                tasks[split] = ()
        first = {split: ids[0] for split, ids in tasks.items() if len(ids)}
        return Survey(tuple(env.describe_tasks(tasks)), first, tuple(faults))
    finally:
        env.close()
