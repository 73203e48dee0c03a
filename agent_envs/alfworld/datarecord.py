"""Which games a data folder holds, in the few words that a run notes of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from agent_envs.alfworld.layout import SPLITS, TRAJ_FILE, is_official
from agent_envs.base import EnvError

__all__ = ["DataRecord"]

_GENERATED_TRIAL = re.compile(r"/trial_(?P<size>[a-z]+)_s(?P<seed>-?\d+)_\d{5,}$")


class DataRecord(Mapping[str, object]):
    """What data was found; it is looked at when it is first asked for, since official data takes seconds to list.

    * ``data``: ``official``, ``generated``, ``mixed``, or ``other`` for games named in neither way;
    * ``games``: split -> number of games, for the splits that are there;
    * ``tasks``: the beginning of a hash over all task ids;
    * ``generator``: for each way in which games were generated, ``size``, ``seed``, and the generator's ``version``
      (None for games of releases that did not write it down).

    Args:
        root: the folder of the splits.
        tasks: lists a split's task ids; raises ``EnvError`` for one that is not there.
    """

    def __init__(self, root: Path, tasks: Callable[[str], Sequence[str]]) -> None:
        self._root = root
        self._tasks = tasks

    def __getitem__(self, key: str) -> object:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    @cached_property
    def _content(self) -> dict[str, object]:
        found: dict[str, Sequence[str]] = {}
        for split in SPLITS:
            try:
                found[split] = self._tasks(split)
            except EnvError:
                continue
        tasks = [task for ids in found.values() for task in ids]
        content: dict[str, object] = {
            "data": _kind(tasks),
            "games": {split: len(ids) for split, ids in found.items()},
            "tasks": hashlib.sha256("\n".join(sorted(tasks)).encode()).hexdigest()[:12],
        }
        if generators := self._generators(tasks):
            content["generator"] = generators
        return content

    def _generators(self, tasks: Sequence[str]) -> list[dict[str, object]]:
        """How the generated games were made; of each size and seed, one game is asked for the version."""
        first: dict[tuple[str, int], str] = {}
        for task in tasks:
            if named := _GENERATED_TRIAL.search(task):
                first.setdefault((named["size"], int(named["seed"])), task)
        return [
            {"version": self._version(task), "size": size, "seed": seed} for (size, seed), task in sorted(first.items())
        ]

    def _version(self, task: str) -> object:
        try:
            return json.loads((self._root / task / TRAJ_FILE).read_text(encoding="utf-8"))["generator"]["version"]
        except (OSError, ValueError, LookupError, TypeError):
            return None


def _kind(tasks: Sequence[str]) -> str:
    official = sum(map(is_official, tasks))
    generated = sum(_GENERATED_TRIAL.search(task) is not None for task in tasks)
    if tasks and official == len(tasks):
        return "official"
    if tasks and generated == len(tasks):
        return "generated"
    return "mixed" if official or generated else "other"
