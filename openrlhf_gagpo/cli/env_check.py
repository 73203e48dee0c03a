"""Check whether an environment works: its data, its tasks, one episode in a real worker process, and the contract."""

from __future__ import annotations

import asyncio
import random
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from agent_envs import registry
from agent_envs.base import PromptTemplate, StepResult, TextEnv
from agent_envs.errors import EnvError, EnvFault
from agent_envs.survey import survey
from agent_envs.testing import find_breach
from agent_envs.workers import RESET_TIMEOUT_S, EnvPool, Session
from openrlhf_gagpo.cli.env_access import refusals
from openrlhf_gagpo.errors import ConfigError, PromptTemplateError, RunError
from openrlhf_gagpo.report.visible import visible
from openrlhf_gagpo.rollout.contract import sound_reset, sound_step
from openrlhf_gagpo.rollout.prompt import PromptBuilder

__all__ = ["check"]


@dataclass
class _Played:
    """One episode: its player, the results of its steps, and the duration of its calls in seconds."""

    task: str
    player: str
    reset_s: float
    step_s: list[float] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return bool(self.results) and (self.results[-1].terminated or self.results[-1].truncated)


def check(
    name: str,
    options: Mapping[str, Any],
    plugins: Sequence[str],
    splits: Sequence[str] | None = None,
    sample: int = 2,
) -> None:
    """Check environment ``name`` and print the findings to stdout.

    Args:
        splits: splits that must have tasks; None for all.
        sample: number of tasks of each split to check the contract on.

    Raises:
        ConfigError: there is no such environment, option or split.
        RunError: it does not work; the message says what to do about it.
    """
    with refusals():
        cls = registry.get(name)
    if hint := cls.needs.hint():
        raise RunError(f"environment {name!r} {hint}")
    with refusals():
        registry.check_options(name, options)
    _say("environment", f"{name}, {cls.__module__}.{cls.__qualname__}")
    _check_prompt(name, cls)
    with _failures():
        _say_all("data", _data(name, cls, options))
        asyncio.run(_check(name, options, plugins, splits, sample))


def _data(name: str, cls: type[TextEnv], options: Mapping[str, Any]) -> Iterator[str]:
    try:
        yield from cls.find_data(**options)
    except (EnvError, ValueError):
        raise
    except Exception as error:
        reason = f"environment {name!r} failed in find_data: {type(error).__name__}: {error}"
        raise EnvFault(reason, traceback.format_exc()) from error


class _Words:
    """Stands in for a tokenizer, because only the wording is checked."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(range(len(text.split())))


def _check_prompt(name: str, cls: type[TextEnv]) -> None:
    """Word the prompt for each answer format, as a run does when it starts."""
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
            raise RunError(f"environment {name!r}: {str(error).rstrip('.')}; fix its prompt") from error


@contextmanager
def _failures() -> Iterator[None]:
    """Turn a failure of the environment into ``RunError``; print its traceback first if it looks like a bug."""
    try:
        yield
    except EnvFault as fault:
        if not fault.refused:
            sys.stdout.write(visible(fault.details))
        raise RunError(str(fault).rstrip(".")) from fault
    except (EnvError, ValueError) as error:
        raise RunError(str(error).rstrip(".")) from error


async def _check(
    name: str, options: Mapping[str, Any], plugins: Sequence[str], named: Sequence[str] | None, sample: int
) -> None:
    begin = time.perf_counter()
    async with EnvPool(name, options, size=1, plugins=plugins) as pool:
        _say("loaded", f"in {time.perf_counter() - begin:.2f} s, in a worker process")
        splits = await _splits(pool, name, named)
        found = await pool.inspect(survey, splits)
        _say("tasks", *found.lines)
        playable = next(iter(found.first.values()), None)
        if playable is not None:
            _report(await _episode(pool, playable))
            await _check_contract(pool, tuple(found.first), sample)
    if found.faults:
        raise RunError(f"{found.faults[0].rstrip('.')}; or name the splits you need with --split")
    empty = [split for split in named or () if split not in found.first] or (splits if playable is None else ())
    if empty:
        raise RunError(f"{name} has no tasks in {', '.join(empty)}; check --env.options")
    _say("result", "ready")


async def _splits(pool: EnvPool, name: str, named: Sequence[str] | None) -> tuple[str, ...]:
    """Return the splits to check, all if none is ``named``. Raises ``ConfigError`` for one that does not exist."""
    session = await pool.open()
    known = await session.splits()
    await session.close()
    strange = [split for split in named or () if split not in known]
    if strange:
        raise ConfigError(f"{name} has no split {strange[0]!r}; it has {', '.join(known)}")
    return tuple(named or known)


async def _check_contract(pool: EnvPool, splits: Sequence[str], sample: int) -> None:
    begin = time.perf_counter()
    breach = await pool.inspect(find_breach, splits, sample, timeout=RESET_TIMEOUT_S * len(splits))
    if breach is not None:
        sys.stdout.write(visible(breach.details))
        raise RunError(f"the contract of environments is broken: {breach.sentence}")
    seconds = time.perf_counter() - begin
    _say("contract", f"kept in {', '.join(splits)}, with up to {sample} tasks of each, in {seconds:.2f} s")


async def _episode(pool: EnvPool, task: str) -> _Played:
    """Play an episode with the expert, or with random actions if there is no expert."""
    session = await pool.open()
    limit = await session.max_steps()
    if not isinstance(limit, int) or limit < 1:
        raise RunError(f"the environment's max_steps is {limit!r}; make it a whole number of at least 1")
    begin = time.perf_counter()
    start = sound_reset(await session.reset(task, 0))
    played = _Played(task, "expert", time.perf_counter() - begin)
    offered, rng = start.admissible_actions, random.Random(0)
    while not played.ended:
        if len(played.results) >= limit:
            raise RunError(
                f"task {task} goes on after max_steps = {limit} steps; let step {limit} return truncated=True"
            )
        action = await _expert_action(session) if played.player == "expert" else None
        if action is None:
            played.player = "random actions" if offered else "meaningless actions (no expert, no list of actions)"
            action = rng.choice(offered) if offered else "?"
        begin = time.perf_counter()
        result = sound_step(await session.step(action))
        played.step_s.append(time.perf_counter() - begin)
        played.results.append(result)
        offered = result.admissible_actions
    await session.close()
    return played


async def _expert_action(session: Session) -> str | None:
    """Return the expert's action, or None if there is no expert; a failing expert raises."""
    try:
        return await session.expert_action()
    except EnvFault:
        raise
    except EnvError:
        return None


def _report(played: _Played) -> None:
    last, steps = played.results[-1], played.step_s
    earned = sum(result.reward for result in played.results)
    outcome = "success" if last.success else "failure" if last.terminated else "step limit reached"
    _say(
        "episode",
        f"task {played.task}, {played.player}: {outcome}",
        f"{len(steps)} steps, return {earned:g}, score {last.score:g}",
    )
    mean, longest = sum(steps) / len(steps), max(steps)
    _say("time", f"reset {played.reset_s * 1e3:.2f} ms, step {mean * 1e3:.2f} ms (longest {longest * 1e3:.2f} ms)")
    if played.player == "expert" and not last.success:
        raise RunError(
            f"the expert did not solve task {played.task} within {len(steps)} steps; raise max_steps in --env.options, "
            "or fix the expert"
        )


def _say(what: str, *lines: str) -> None:
    _say_all(what, lines)


def _say_all(what: str, lines: Iterable[str]) -> None:
    for number, line in enumerate(lines):
        sys.stdout.write(f"{'' if number else what:<12} {visible(line)}\n")
