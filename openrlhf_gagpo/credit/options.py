"""Options of the estimators. Options that several have are described once here, so that a name means one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openrlhf_gagpo.errors import EstimatorError
from openrlhf_gagpo.options import Options, declare

__all__ = ["EstimatorOptions", "LoneStates", "option"]

_SHARED: Mapping[str, Mapping[str, Any]] = {
    "gamma": {"help": "discount of rewards per environment step", "range": (0.0, 1.0)},
    "lambd": {
        "help": "decay of the sum over later TD residuals (GAE lambda), per environment step",
        "range": (0.0, 1.0),
    },
    "gigpo_mode": {
        "help": "whether deviations are divided by the standard deviation (mean_std_norm) or only centred (mean_norm)",
        "choices": ("mean_norm", "mean_std_norm"),
    },
    "step_coef": {"help": "weight of the step advantage next to the episode advantage"},
    "episode_coef": {"help": "weight of the episode advantage next to the step advantage"},
    "goal_reward": {"help": "reward units that reaching the goal is worth", "range": (0.0, float("inf"))},
    "success_above": {
        "help": "score above which an episode succeeded, where the batch does not say it (column success)",
    },
    "no_std_norm": {"help": "centre the scores of a group without dividing by their standard deviation"},
    "statistics": {
        "help": "entries of a group's episode-score statistics: one per trajectory, or one per row, where long "
        "episodes weigh more",
        "choices": ("trajectories", "rows"),
    },
    "invalid_penalty": {
        "help": "reward units that an invalid step costs: one whose response is malformed",
        "range": (0.0, float("inf")),
    },
    "inadmissible_penalty": {
        "help": "reward units that an inadmissible step costs: one whose action the environment did not recognise; a "
        "step that is both costs the larger of the two",
        "range": (0.0, float("inf")),
    },
    "invalid_penalty_mode": {
        "help": "where a step's penalty counts: reward = part of the reward, so it reaches earlier steps; local = off "
        "that step's own score or return (and its own reward, where the estimator sums residuals along the episode); "
        "none = nowhere",
        "choices": ("reward", "local", "none"),
    },
    "ig_type": {
        "help": "information gain of a step: the difference of the answer's mean log-probabilities per token, or of "
        "their exponentials",
        "choices": ("log_prob", "prob"),
    },
    "ig_answers": {
        "help": "golden answer whose likelihood counts: the task's first, or the one most likely after each prompt, at "
        "as many times the cost as there are",
        "choices": ("first", "max"),
    },
    "drop_reward_free_groups": {"help": "leave groups without any reward out of training"},
}


def option(name: str, default: bool | int | float | str) -> Any:
    """Declare a dataclass field for the shared option ``name``; use ``declare`` for an option of one estimator.

    Raises:
        EstimatorError: there is no shared option of that name.
    """
    if name not in _SHARED:
        raise EstimatorError(
            f"no shared option is called {name!r} ({', '.join(_SHARED)} are); describe it with openrlhf_gagpo.options"
        )
    return declare(default, **_SHARED[name])


@dataclass(frozen=True)
class LoneStates:
    """What an estimator that compares the visits of a state has left where a state was visited once in its group."""

    left: str
    """What still credits such a step, in words; "" if nothing does, so that a group of such states teaches nothing."""
    option: str = ""
    """Flag of the estimator that helps, with a value; "" if it has none."""


@dataclass(frozen=True)
class EstimatorOptions(Options):
    """The options that every estimator has; a subclass adds its own and may change a default.

    Every field is checked when the options are constructed, see ``openrlhf_gagpo.options``.
    """

    statistics: str = option("statistics", "trajectories")
    invalid_penalty: float = option("invalid_penalty", 0.1)
    inadmissible_penalty: float = option("inadmissible_penalty", 0.0)
    invalid_penalty_mode: str = option("invalid_penalty_mode", "local")
    drop_reward_free_groups: bool = option("drop_reward_free_groups", False)

    @property
    def token_advantages(self) -> bool:
        """Whether the estimator gives every token an advantage of its own, which not every policy loss takes."""
        return False

    @property
    def lone_states(self) -> LoneStates | None:
        """What is left in a state visited once; None if the estimator does not compare the visits of a state."""
        return None
