"""See whether an environment works: its data, its tasks, and one episode in a real worker process."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from agent_envs import registry
from agent_envs.base import EnvError, StepResult
from agent_envs.workers import EnvFault, EnvPool, Session
from openrlhf_gagpo.cli.env_access import install_hint, refusals
from openrlhf_gagpo.config.errors import ConfigError, RunError

__all__ = ["check"]

_PATIENCE_S = 600.0
"""For listing tasks and resets: the first look at data on a slow disk may take minutes."""

_REFUSALS = ("agent_envs.base.EnvError:", "ValueError:")
"""How the last line of a traceback begins when an environment refused data or options; its message says enough."""

OFFICIAL_ALFWORLD: Mapping[str, Mapping[str, int]] = {
    "train": {"Pick": 790, "Look": 308, "Clean": 650, "Heat": 459, "Cool": 533, "Pick2": 813},
    "valid_seen": {"Pick": 35, "Look": 13, "Clean": 27, "Heat": 16, "Cool": 25, "Pick2": 24},
    "valid_unseen": {"Pick": 24, "Look": 18, "Clean": 31, "Heat": 23, "Cool": 21, "Pick2": 17},
}
"""Games of the official data by split and category (Shridhar et al., arXiv 2010.03768, table 1)."""


@dataclass
class _Played:
    """One episode: who played it, its last step, and how long its calls took in seconds."""

    task: str
    player: str
    reset_s: float
    step_s: list[float] = field(default_factory=list)
    earned: float = 0.0
    last: StepResult | None = None


def check(name: str, options: Mapping[str, Any], plugins: Sequence[str], splits: Sequence[str] | None = None) -> None:
    """Check environment ``name`` and tell on stdout what was found.

    Args:
        splits: those that must have tasks; None for all.

    Raises:
        ConfigError: no such environment, option or split.
        RunError: it does not work; the message says how to mend it.
    """
    hint = install_hint(name)
    if hint:
        raise RunError(f"environment {name!r} {hint}")
    with refusals():
        registry.check_options(name, options)
        cls = registry.get(name)
    strange = [split for split in splits or () if split not in cls.splits]
    if strange:
        raise ConfigError(f"{name} has no split {strange[0]!r}; it has {', '.join(cls.splits)}")
    _say("environment", f"{name}, {cls.__module__}.{cls.__qualname__}")
    if name in _DATA:
        with _failures():
            _say("data", _DATA[name].where(options))
    with _failures():
        asyncio.run(_check(name, options, plugins, tuple(splits or cls.splits)))


@contextmanager
def _failures() -> Iterator[None]:
    """Turn a failure of the environment into ``RunError``, after the worker's traceback where it looks like a bug."""
    try:
        yield
    except EnvError as error:
        details = error.details if isinstance(error, EnvFault) else ""
        if not any(line.startswith(_REFUSALS) for line in details.splitlines()):
            sys.stdout.write(details)
        raise RunError(str(error).rstrip(".")) from error


async def _check(name: str, options: Mapping[str, Any], plugins: Sequence[str], splits: Sequence[str]) -> None:
    begin = time.perf_counter()
    async with EnvPool(name, options, size=1, plugins=plugins, reset_timeout=_PATIENCE_S) as pool:
        _say("loaded", f"in {time.perf_counter() - begin:.2f} s, in a worker process")
        # Where no instance can be made, this says so once; listing would say it for every split.
        await (await pool.open()).close()
        tasks, faults = await _tasks(pool, splits)
        lines = _DATA[name].table(tasks) if name in _DATA else _counts(tasks)
        for label, line in zip_longest(("tasks",), lines, fillvalue=""):
            _say(label, line)
        playable = next((ids[0] for ids in tasks.values() if ids), None)
        if playable is not None:
            _report(await _episode(pool, playable))
    if faults:
        raise RunError(f"{str(faults[0]).rstrip('.')}; or name the splits you need with --split")
    if playable is None:
        raise RunError(f"{name} has no tasks in {', '.join(splits)}; check --env.options")
    _say("result", "ready")


async def _tasks(pool: EnvPool, splits: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[EnvError]]:
    tasks: dict[str, tuple[str, ...]] = {}
    faults: list[EnvError] = []
    for split in splits:
        try:
            tasks[split] = await pool.tasks(split)
        except EnvError as error:
            faults.append(error)
            tasks[split] = ()
    return tasks, faults


async def _episode(pool: EnvPool, task: str) -> _Played:
    """The expert's episode, or a random one where there is no expert."""
    session = await pool.open()
    begin = time.perf_counter()
    start = await session.reset(task, 0)
    played = _Played(task, "expert", time.perf_counter() - begin)
    offered, rng = start.admissible_actions, random.Random(0)
    while played.last is None or not (played.last.terminated or played.last.truncated):
        action = await _expert_action(session) if played.player == "expert" else None
        if action is None:
            played.player = "random actions" if offered else "meaningless actions (no expert, no list of actions)"
            action = rng.choice(offered) if offered else "?"
        begin = time.perf_counter()
        played.last = await session.step(action)
        played.step_s.append(time.perf_counter() - begin)
        played.earned += played.last.reward
        offered = played.last.admissible_actions
    await session.close()
    return played


async def _expert_action(session: Session) -> str | None:
    """None where there is no expert; a failing one raises."""
    try:
        return await session.expert_action()
    except EnvFault:
        raise
    except EnvError:
        return None


def _report(played: _Played) -> None:
    last, steps = played.last, played.step_s
    outcome = "success" if last.success else "failure" if last.terminated else "step limit reached"
    _say("episode", f"task {played.task}, {played.player}: {outcome}")
    _say("", f"{len(steps)} steps, return {played.earned:g}, score {last.score:g}")
    mean, longest = sum(steps) / len(steps), max(steps)
    _say("time", f"reset {played.reset_s * 1e3:.2f} ms, step {mean * 1e3:.2f} ms (longest {longest * 1e3:.2f} ms)")
    if played.player == "expert" and not last.success:
        raise RunError(
            f"the expert did not solve task {played.task} within {len(steps)} steps; raise max_steps in --env.options, "
            "or mend the expert"
        )


def _counts(tasks: Mapping[str, Sequence[str]]) -> list[str]:
    return [", ".join(f"{split} {len(ids)}" for split, ids in tasks.items())]


def _say(what: str, text: str) -> None:
    sys.stdout.write(f"{what:<12} {text}\n")


def _alfworld_folder(options: Mapping[str, Any]) -> str:
    from agent_envs.alfworld.layout import games_root

    if options.get("data_dir"):
        origin = "option data_dir"
    elif os.environ.get("ALFWORLD_DATA"):
        origin = "variable ALFWORLD_DATA"
    else:
        origin = "default; option data_dir or variable ALFWORLD_DATA choose another"
    return f"{games_root(options.get('data_dir'))} ({origin})"


def _alfworld_table(tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """Games found / games of the official data, by split and category."""
    from agent_envs.alfworld.layout import CATEGORIES, task_type_of

    lines = [f"{'found/official':<15}" + "".join(f"{kind:>10}" for kind in ("all", *CATEGORIES.values()))]
    differs = False
    for split, ids in tasks.items():
        found, official = Counter(CATEGORIES[task_type_of(task)] for task in ids), OFFICIAL_ALFWORLD[split]
        cells = [f"{len(ids)}/{sum(official.values())}"]
        cells += [f"{found[kind]}/{official[kind]}" for kind in CATEGORIES.values()]
        lines.append(f"{split:<15}" + "".join(f"{cell:>10}" for cell in cells))
        differs = differs or found != official
    if differs:
        lines += [
            "These are not the official games; `alfworld-download` fetches those, and",
            "`gagpo env generate alfworld --out DIR --split train --count 50` makes games without a download.",
        ]
    return lines


@dataclass(frozen=True)
class _Data:
    """What to tell of an environment's data: where it was looked for, and what the tasks say of it."""

    where: Callable[[Mapping[str, Any]], str]
    table: Callable[[Mapping[str, Sequence[str]]], list[str]]


_DATA: Mapping[str, _Data] = {"alfworld": _Data(_alfworld_folder, _alfworld_table)}
