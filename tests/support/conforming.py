"""Functions for the conformance command: ours under their names, and some that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openrlhf_gagpo import credit

Columns = dict[str, list[Any]]
Options = dict[str, Any]


def __getattr__(name: str) -> Callable[[Columns, Options], list[float]]:
    """The registered estimator ``name``."""
    if name not in credit.names():
        raise AttributeError(name)
    estimator = credit.get(name)

    def function(columns: Columns, options: Options) -> list[float]:
        batch = credit.StepBatch.from_columns(**columns)
        return estimator(batch, estimator.options_cls(**options)).advantage.tolist()

    return function


def undiscounted(columns: Columns, options: Options) -> list[float]:
    """GAGPO that forgets the discount."""
    return __getattr__("gagpo")(columns, options | {"gamma": 1.0})


def in_another_order(columns: Columns, options: Options) -> list[float]:
    """GRPO whose answer is sorted by trajectory and step."""
    answer = __getattr__("grpo")(columns, options)
    places = list(zip(columns["group"], columns["traj"], columns["step"], strict=True))
    return [answer[row] for row in sorted(range(len(answer)), key=places.__getitem__)]


def one_too_many(columns: Columns, options: Options) -> list[float]:
    return [0.0] * (len(columns["step"]) + 1)


def broken(columns: Columns, options: Options) -> list[float]:
    columns["group"].clear()
    raise KeyError("no such\ncolumn")


not_a_function = 3
