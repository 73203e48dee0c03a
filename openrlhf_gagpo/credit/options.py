"""Options of the estimators. A field is described once here, so one name means one thing in every estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["EstimatorOptions", "option"]

_SHARED: Mapping[str, Mapping[str, Any]] = {
    "gamma": {"help": "discount of rewards per environment step", "range": (0.0, 1.0)},
    "lambd": {
        "help": "decay of the sum over later TD residuals (GAE lambda), per environment step",
        "range": (0.0, 1.0),
    },
    "no_std_norm": {"help": "centre the scores of a group without dividing by their standard deviation"},
    "normalize": {
        "help": "set of steps whose mean and standard deviation normalise the advantages",
        "choices": ("group", "batch", "none"),
    },
    "monte_carlo": {"help": "use return minus group state value instead of the lambda sum of TD residuals"},
    "broadcast_coef": {"help": "weight of GiGPO's episode advantage, added to every step after normalisation"},
    "truncation": {
        "help": "value after a truncated last step: terminal = 0, bootstrap = that of its final state if visited",
        "choices": ("terminal", "bootstrap"),
    },
    "invalid_penalty": {"help": "reward units taken off for an invalid step", "range": (0.0, float("inf"))},
    "invalid_penalty_mode": {
        "help": "reward = part of the reward, so it reaches earlier steps; local = off that step's own score or return "
        "(gagpo: also its own reward, so later values carry it to earlier steps); none = no penalty",
        "choices": ("reward", "local", "none"),
    },
    "singleton": {
        "help": "value of a state visited once in its group: paper = its own return; passthrough = reward plus "
        "discounted next value, so its TD residual is 0",
        "choices": ("paper", "passthrough"),
    },
    "drop_reward_free_groups": {"help": "leave groups without any reward out of training"},
    "statistics": {
        "help": "entries of a group's episode-score statistics: one per trajectory, or one per row, where long "
        "episodes weigh more",
        "choices": ("trajectories", "rows"),
    },
    "gigpo_mode": {
        "help": "whether GiGPO divides by the standard deviation (mean_std_norm) or only centres (mean_norm)",
        "choices": ("mean_norm", "mean_std_norm"),
    },
    "step_coef": {"help": "weight of GiGPO's step advantage next to its episode advantage"},
    "ddof": {"help": "1 = unbiased standard deviation, 0 = population standard deviation", "choices": (0, 1)},
}


def option(name: str, default: bool | int | float | str) -> Any:
    """Dataclass field for the shared option ``name``, with its help text and choices as metadata."""
    return field(default=default, metadata=dict(_SHARED[name]))


@dataclass(frozen=True)
class EstimatorOptions:
    """Base of all option classes; checks every field. Raises ``ValueError``.

    A field must be one of its ``choices``, lie in its ``range``, and be finite if it is a float.
    """

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            choices = item.metadata.get("choices")
            if choices is not None and value not in choices:
                raise ValueError(f"{item.name} is {value!r}; choose one of {', '.join(map(str, choices))}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{item.name} is {value}; it must be a finite number")
            low, high = item.metadata.get("range", (None, None))
            if low is not None and not low <= value <= high:
                raise ValueError(f"{item.name} is {value}; it must lie between {low:g} and {high:g}")
