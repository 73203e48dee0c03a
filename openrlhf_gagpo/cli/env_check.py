"""See whether an environment works: its data, its tasks, and one episode in a real worker process."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from agent_envs import registry
from agent_envs.base import EnvError, PromptTemplate, StepResult, TextEnv
from agent_envs.workers import EnvFault, EnvPool, Session
from openrlhf_gagpo.cli.env_access import install_hint, refusals
from openrlhf_gagpo.cli.env_data import DATA
from openrlhf_gagpo.errors import ConfigError, PromptTemplateError, RunError
from openrlhf_gagpo.rollout.contract import sound_reset, sound_step
from openrlhf_gagpo.rollout.prompt import PromptBuilder

__all__ = ["check"]

_REFUSALS = (
    "agent_envs.base.EnvError:",
    "agent_envs.webshop.products.CatalogueError:",
    "agent_envs.webshop.store.StoreError:",
    "ValueError:",
)
"""How the last line of a traceback begins when an environment refused data or options; its message says enough."""


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
    data = DATA.get(name)
    known = data.splits(options) if data else cls.splits
    strange = [split for split in splits or () if split not in known]
    if strange:
        raise ConfigError(f"{name} has no split {strange[0]!r}; it has {', '.join(known)}")
    _say("environment", f"{name}, {cls.__module__}.{cls.__qualname__}")
    _check_prompt(name, cls)
    with _failures():
        if data:
            _say_all("data", data.where(options))
        asyncio.run(_check(name, options, plugins, tuple(splits or known), splits or ()))


class _Words:
    """Stands in for a tokenizer: the check is of the wording."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(range(len(text.split())))


def _check_prompt(name: str, cls: type[TextEnv]) -> None:
    """Word the prompt for each answer format, as a run does at its start."""
    template = getattr(cls, "prompt", None)
    if not isinstance(template, PromptTemplate):
        raise RunError(f"environment {name!r} has no prompt; give its class an attribute prompt with a PromptTemplate")
    for asks in (True, False):
        try:
            PromptBuilder(
                template,
                _Words(),
                history_length=1,
                think=asks,
                action_tags=asks,
                list_actions=asks,
                max_prompt_tokens=1_000_000,
            )
        except PromptTemplateError as error:
            raise RunError(f"environment {name!r}: {str(error).rstrip('.')}; mend its prompt") from error


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


async def _check(
    name: str, options: Mapping[str, Any], plugins: Sequence[str], splits: Sequence[str], needed: Sequence[str]
) -> None:
    begin = time.perf_counter()
    async with EnvPool(name, options, size=1, plugins=plugins) as pool:
        _say("loaded", f"in {time.perf_counter() - begin:.2f} s, in a worker process")
        # Where no instance can be made, this says so once; listing would say it for every split.
        await (await pool.open()).close()
        tasks, faults = await _tasks(pool, splits)
        _say("tasks", *(DATA[name].table(tasks, options) if name in DATA else _counts(tasks)))
        playable = next((ids[0] for ids in tasks.values() if ids), None)
        if playable is not None:
            _report(await _episode(pool, playable))
    if faults:
        raise RunError(f"{str(faults[0]).rstrip('.')}; or name the splits you need with --split")
    empty = [split for split in needed if not tasks[split]] or (splits if playable is None else ())
    if empty:
        raise RunError(f"{name} has no tasks in {', '.join(empty)}; check --env.options")
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
    limit = await session.max_steps()
    if not isinstance(limit, int) or limit < 1:
        raise RunError(f"the environment's max_steps is {limit!r}; make it a whole number of at least 1")
    begin = time.perf_counter()
    start = sound_reset(await session.reset(task, 0))
    played = _Played(task, "expert", time.perf_counter() - begin)
    offered, rng = start.admissible_actions, random.Random(0)
    while played.last is None or not (played.last.terminated or played.last.truncated):
        if len(played.step_s) >= limit:
            raise RunError(
                f"task {task} goes on after max_steps = {limit} steps; let step {limit} return truncated=True"
            )
        action = await _expert_action(session) if played.player == "expert" else None
        if action is None:
            played.player = "random actions" if offered else "meaningless actions (no expert, no list of actions)"
            action = rng.choice(offered) if offered else "?"
        begin = time.perf_counter()
        played.last = sound_step(await session.step(action))
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
    _say(
        "episode",
        f"task {played.task}, {played.player}: {outcome}",
        f"{len(steps)} steps, return {played.earned:g}, score {last.score:g}",
    )
    mean, longest = sum(steps) / len(steps), max(steps)
    _say("time", f"reset {played.reset_s * 1e3:.2f} ms, step {mean * 1e3:.2f} ms (longest {longest * 1e3:.2f} ms)")
    if played.player == "expert" and not last.success:
        raise RunError(
            f"the expert did not solve task {played.task} within {len(steps)} steps; raise max_steps in --env.options, "
            "or mend the expert"
        )


def _counts(tasks: Mapping[str, Sequence[str]]) -> list[str]:
    return [", ".join(f"{split} {len(ids)}" for split, ids in tasks.items())]


def _say(what: str, *lines: str) -> None:
    _say_all(what, lines)


def _say_all(what: str, lines: Iterable[str]) -> None:
    for label, line in zip_longest((what,), lines, fillvalue=""):
        sys.stdout.write(f"{label:<12} {line}\n")
