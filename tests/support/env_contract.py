"""What every environment has to keep to, as one function that any environment's tests can call."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable

import jinja2
import pytest

from agent_envs.base import EnvError, Reset, StepResult, TextEnv, UnknownTask

__all__ = ["check_env"]

MALFORMED = (
    "",
    "   ",
    "\n\t\r",
    "\x00\x01\x1b[31m\x7f",
    "no such action",
    "go " * 3,
    "九尾の狐 \N{FIRE} \u202e\u0661\u0662",
    "\ud800",
    "<action>go</action>",
    "%s {0} {{ x }} \\",
    "x" * 200_000,
)


def check_env(make_env: Callable[[], TextEnv], split: str, sample: int = 5) -> None:
    """Check the contract in ``TextEnv``'s docstring on up to ``sample`` tasks of ``split``."""
    env, other = make_env(), make_env()
    try:
        _check_tasks(env, other, split)
        tasks = list(env.tasks(split))[:sample]
        assert tasks, f"split {split!r} has no tasks"
        _check_idle(make_env, env, tasks[0])
        for task in tasks:
            _check_determinism(env, other, task)
        _check_malformed(env, other, tasks[0])
        _check_truncation(env, tasks[0])
        for task in tasks:
            _check_expert(env, task)
        _check_prompt(env, tasks[0])
    finally:
        env.close()
        other.close()


def _check_tasks(env: TextEnv, other: TextEnv, split: str) -> None:
    assert split in env.splits
    assert env.max_steps >= 1
    every = [task for name in env.splits for task in env.tasks(name)]
    assert len(set(every)) == len(every), "a task id occurs twice"
    assert all(isinstance(task, str) and task for task in every)
    assert list(env.tasks(split)) == list(other.tasks(split)), "the tasks of a split are not fixed"
    with pytest.raises(UnknownTask):
        env.tasks("no such split")
    with pytest.raises(UnknownTask):
        env.reset("no such task", 0)


def _check_idle(make_env: Callable[[], TextEnv], env: TextEnv, task: str) -> None:
    fresh = make_env()
    try:
        with pytest.raises(EnvError):
            fresh.step("anything")
    finally:
        fresh.close()
    _play(env, task, _idle(env))
    with pytest.raises(EnvError):
        env.step("anything")


def _check_determinism(env: TextEnv, other: TextEnv, task: str) -> None:
    """Two instances, one of them used before, agree on everything."""
    start, results, actions = _explore(env, task)
    again = other.reset(task, 7)
    assert again == start
    assert [other.step(action) for action in actions] == results
    for record in (start, *results):
        assert pickle.loads(pickle.dumps(record)) == record, "a result does not survive pickling"
        _check_record(record)


def _check_record(record: Reset | StepResult) -> None:
    assert isinstance(record.observation, str)
    assert isinstance(record.state_key, str)
    assert all(isinstance(action, str) for action in record.admissible_actions)
    if isinstance(record, StepResult):
        assert not (record.terminated and record.truncated)
        assert isinstance(record.reward, float)
        assert 0.0 <= record.score <= 1.0


def _check_malformed(env: TextEnv, other: TextEnv, task: str) -> None:
    """An action that makes no sense changes nothing but the number of steps."""
    start = env.reset(task, 7)
    for action in MALFORMED[: env.max_steps - 1]:
        result = env.step(action)
        assert not result.admissible, f"{action[:20]!r} counted as admissible"
        assert not result.terminated
        assert not result.success
        assert result.admissible_actions == start.admissible_actions
    for action in MALFORMED[env.max_steps - 1 :]:
        env.reset(task, 7)
        assert not env.step(action).terminated
    _check_later_steps(env, other, task)


def _check_later_steps(env: TextEnv, other: TextEnv, task: str) -> None:
    """After malformed actions, sensible ones do what they do in an instance that saw none.

    Sensible are the expert's actions and, where there is no expert, listed ones.
    """
    offered = other.reset(task, 7).admissible_actions
    expert = other.expert()
    actions: list[str] = []
    clean: list[StepResult] = []
    # The other half of the steps is for malformed actions.
    while len(actions) < env.max_steps // 2 and (expert is not None or offered):
        actions.append(expert() if expert is not None else offered[0])
        clean.append(other.step(actions[-1]))
        offered = clean[-1].admissible_actions
        if clean[-1].terminated or clean[-1].truncated:
            break
    room = env.max_steps - len(actions)
    for first in range(0, len(MALFORMED), room):
        env.reset(task, 7)
        for action in MALFORMED[first : first + room]:
            env.step(action)
        for action, result in zip(actions, clean, strict=True):
            assert _effect(env.step(action)) == _effect(result), f"malformed actions changed what {action!r} does"


def _effect(result: StepResult) -> tuple[object, ...]:
    """What may not depend on the number of steps taken before."""
    ended = (result.terminated, result.success, result.score, result.reward)
    return (result.state_key, result.admissible, result.admissible_actions, *ended)


def _check_truncation(env: TextEnv, task: str) -> None:
    results = _play(env, task, _idle(env))
    assert len(results) == env.max_steps
    assert [result.truncated for result in results] == [False] * (env.max_steps - 1) + [True]
    assert not any(result.terminated or result.success for result in results)


def _check_expert(env: TextEnv, task: str) -> None:
    env.reset(task, 7)
    expert = env.expert()
    if expert is None:
        return
    for _ in range(env.max_steps):
        result = env.step(expert())
        assert result.admissible
        if result.terminated:
            break
    assert result.terminated
    assert result.success
    assert result.score == 1.0


def _check_prompt(env: TextEnv, task: str) -> None:
    """The template uses known variables only and shows the observation."""
    start = env.reset(task, 7)
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    turn = engine.from_string(env.prompt.turn)
    past = [{"step": 0, "observation": "seen before", "action": "done before"}]
    for history in ([], past):
        for tags in (False, True):
            text = turn.render(
                task=start.task,
                observation=start.observation,
                history=history,
                admissible_actions=list(start.admissible_actions),
                step=len(history),
                think=tags,
                action_tags=tags,
            )
            assert start.observation.strip() in text


def _explore(env: TextEnv, task: str) -> tuple[Reset, list[StepResult], list[str]]:
    """An episode that tries different admissible actions where they are listed, and the expert's where not."""
    start = env.reset(task, 7)
    expert = env.expert()
    actions: list[str] = []
    results: list[StepResult] = []
    offered = start.admissible_actions
    while not results or not (results[-1].terminated or results[-1].truncated):
        assert len(results) < env.max_steps, "the episode goes on after max_steps"
        if offered:
            actions.append(offered[(3 * len(actions) + 1) % len(offered)])
        else:
            actions.append(expert() if expert is not None else "no such action")
        results.append(env.step(actions[-1]))
        offered = results[-1].admissible_actions
    return start, results, actions


def _idle(env: TextEnv) -> Iterable[str]:
    return ("no such action" for _ in range(env.max_steps))


def _play(env: TextEnv, task: str, actions: Iterable[str]) -> list[StepResult]:
    env.reset(task, 7)
    return [env.step(action) for action in actions]
