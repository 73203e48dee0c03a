"""Checks of what an environment returns, so that a wrong answer costs one episode and not the run.

Only the fields that rollout, records and credit read are checked. Numbers and switches are converted to plain Python
values, since records are JSON.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np

from agent_envs.base import EnvError, Reset, StepResult

__all__ = ["sound_reset", "sound_step"]


def sound_reset(answer: object) -> Reset:
    """Return ``answer`` unchanged. Raises ``EnvError`` unless it is a ``Reset`` with fields of the declared types."""
    if not isinstance(answer, Reset):
        raise EnvError(f"the environment's reset returned a {type(answer).__name__}: it must return a Reset")
    _check_texts(answer, ("observation", "state_key", "task", "category"), "reset")
    return replace(answer, info=_info(answer, "reset"))


def sound_step(answer: object) -> StepResult:
    """Return ``answer``, or a copy with plain numbers and switches (``np.float32`` becomes ``float``).

    Raises ``EnvError`` unless it is a ``StepResult`` whose fields have the declared types, whose reward and score are
    finite, and which ends the episode in at most one way.
    """
    if not isinstance(answer, StepResult):
        raise EnvError(f"the environment's step returned a {type(answer).__name__}: it must return a StepResult")
    _check_texts(answer, ("observation", "state_key"), "step")
    plain: dict[str, Any] = {
        "reward": _number(answer, "reward"),
        "score": _number(answer, "score"),
        "terminated": _switch(answer, "terminated"),
        "truncated": _switch(answer, "truncated"),
        "admissible": _switch(answer, "admissible"),
        "success": _switch(answer, "success"),
        "info": _info(answer, "step"),
    }
    if plain["terminated"] and plain["truncated"]:
        raise EnvError("the environment reported a step as both terminated and truncated: it must choose one")
    # Most answers are plain already, and a copy of a frozen dataclass takes longer than all checks.
    changed = {name: value for name, value in plain.items() if value is not getattr(answer, name)}
    return replace(answer, **changed) if changed else answer


def _check_texts(answer: Reset | StepResult, names: tuple[str, ...], method: str) -> None:
    for name in names:
        value = getattr(answer, name)
        if not isinstance(value, str):
            raise EnvError(f"the environment's {method} returned a {type(value).__name__} as {name}: it must be a str")
    actions = answer.admissible_actions
    if not isinstance(actions, tuple | list) or not all(isinstance(action, str) for action in actions):
        raise EnvError(f"the environment's {method} returned wrong admissible_actions: they must be a tuple of str")


def _info(answer: Reset | StepResult, method: str) -> dict[str, object]:
    """Return ``info`` as JSON gives it back, so that records hold exactly what was played."""
    if isinstance(answer.info, dict) and not answer.info:
        return answer.info
    try:
        plain: dict[str, object] = json.loads(json.dumps(dict(answer.info), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise EnvError(
            f"the environment's {method} returned an info that is not JSON ({error}): use plain Python values"
        ) from None
    return plain


def _number(answer: StepResult, name: str) -> float:
    value = getattr(answer, name)
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise EnvError(f"the environment returned the {name} {value!r}, which is not finite: it must be a number")
    return number


def _switch(answer: StepResult, name: str) -> bool:
    value = getattr(answer, name)
    if type(value) is bool:
        return value
    # NumPy's booleans are none of Python's; 0 and 1 equal them. Text and NaN would count as true.
    if isinstance(value, str | bytes) or np.ndim(value) != 0 or value not in (False, True):
        raise EnvError(f"the environment returned {value!r} as {name}: it must be True or False")
    return bool(value)
