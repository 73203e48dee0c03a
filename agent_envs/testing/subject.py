"""An environment under test, whose answers are checked and whose exceptions become sentences."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real

from agent_envs.base import Expert, Reset, StepResult, TextEnv
from agent_envs.errors import EnvError

__all__ = ["Subject", "check_mapping", "demand", "ended", "raising", "short", "surviving"]

_SEED = 7


def demand(kept: bool, sentence: str) -> None:
    """Raise ``AssertionError`` with ``sentence`` unless ``kept``; unlike an assert statement, also under ``-O``."""
    if not kept:
        raise AssertionError(sentence)


@contextmanager
def surviving(what: str, asked: str) -> Iterator[None]:
    """Turn any exception of the block into ``AssertionError`` that says ``what`` raised and what is ``asked`` of it."""
    try:
        yield
    # SystemExit too: engines written as programs call sys.exit.
    except (Exception, SystemExit) as error:
        raise AssertionError(f"{what} raised {_described(error)}; {asked}") from error


@contextmanager
def raising(kind: type[EnvError], what: str, why: str) -> Iterator[None]:
    """Raise ``AssertionError`` unless the block raises ``kind``."""
    try:
        yield
    except kind:
        return
    except Exception as error:
        raise AssertionError(
            f"{what} raised {_described(error)}; it must raise {kind.__name__}, since {why}"
        ) from error
    raise AssertionError(f"{what} raised nothing; it must raise {kind.__name__}, since {why}")


class Subject:
    """An instance under test; its answers are checked, and its exceptions become sentences."""

    def __init__(self, env: TextEnv) -> None:
        self.env = env

    def reset(self, task: str) -> Reset:
        """Start ``task``, always with the same seed."""
        with surviving(f"reset({task!r}, {_SEED})", "it must start every task that tasks() lists"):
            start = self.env.reset(task, _SEED)
        _check_answer(start, Reset, "reset", ("observation", "state_key", "task", "category"))
        _check_pickling(start, "reset")
        return start

    def step(self, action: str) -> StepResult:
        """Take one action of a running episode."""
        with surviving(f"step({short(action)})", "while an episode runs it must survive any string"):
            result = self.env.step(action)
        _check_answer(result, StepResult, "step", ("observation", "state_key"))
        _check_outcome(result)
        _check_pickling(result, "step")
        return result

    def expert(self) -> Expert | None:
        """Return the demonstrator of the running episode, if there is one."""
        with surviving("expert()", "it must return None where there is no expert"):
            return self.env.expert()

    def advice(self, expert: Expert) -> str:
        """Return the action that the demonstrator would take."""
        with surviving("the expert", "it must know an action while an episode runs"):
            action = expert()
        demand(isinstance(action, str), f"the expert returned a {type(action).__name__}; its actions must be str")
        return action

    def play(self, task: str, action: str) -> list[StepResult]:
        """Play an episode of nothing but ``action``, to its end or the step limit."""
        self.reset(task)
        results: list[StepResult] = []
        while len(results) < self.env.max_steps and not (results and ended(results[-1])):
            results.append(self.step(action))
        return results


def ended(result: StepResult) -> bool:
    """Return whether the episode is over."""
    return bool(result.terminated or result.truncated)


def _check_answer(answer: object, kind: type[Reset | StepResult], method: str, texts: Sequence[str]) -> None:
    if not isinstance(answer, kind):
        raise AssertionError(f"{method} returned a {type(answer).__name__}; it must return a {kind.__name__}")
    for name in texts:
        text = getattr(answer, name)
        demand(isinstance(text, str), f"{method} returned a {type(text).__name__} as {name}; it must be a str")
    actions = answer.admissible_actions
    listed = isinstance(actions, tuple | list) and all(isinstance(action, str) for action in actions)
    demand(listed, f"{method} returned {actions!r:.60} as admissible_actions; they must be a tuple of str")
    check_mapping(answer.info, "info", method)


def _check_pickling(answer: Reset | StepResult, method: str) -> None:
    with surviving(f"pickling what {method} returned", "answers travel between processes"):
        copy = pickle.loads(pickle.dumps(answer))
    demand(copy == answer, f"what {method} returned is changed by pickling; answers travel between processes")


def check_mapping(values: object, what: str, method: str) -> None:
    """Check that ``values``, the ``what`` that ``method`` returned, is a mapping from names to JSON values."""
    named = isinstance(values, Mapping) and all(isinstance(key, str) for key in values)
    demand(named, f"{method} returned the {what} {values!r:.60}; it must be a mapping with str as keys")
    with surviving(f"writing the {what} of {method} as JSON", "it must hold JSON values only, and no infinite number"):
        json.dumps(dict(values) if isinstance(values, Mapping) else values, allow_nan=False)


def _check_outcome(result: StepResult) -> None:
    for name in ("terminated", "truncated", "admissible", "success"):
        switch = getattr(result, name)
        # NumPy's bool is accepted too.
        plain = isinstance(switch, bool) or getattr(getattr(switch, "dtype", None), "kind", "") == "b"
        demand(plain, f"step returned {name} as a {type(switch).__name__}; it must be a bool")
    demand(
        not (result.terminated and result.truncated),
        "step returned terminated=True and truncated=True; the task's own end comes first, so leave truncated False",
    )
    for name in ("reward", "score"):
        number = getattr(result, name)
        finite = isinstance(number, Real) and math.isfinite(number)
        demand(finite, f"step returned the {name} {number!r:.60}; it must be a finite number")
    demand(0.0 <= result.score <= 1.0, f"step returned the score {result.score:g}; it must be between 0 and 1")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


def short(action: str) -> str:
    """Return ``action`` quoted and shortened for a sentence."""
    return repr(action if len(action) <= 40 else f"{action[:40]}...")
