"""Declared options: fields of a frozen dataclass with their help, choices and range.

Estimators and policy losses declare their options this way. Constructing an options object checks every field; the
command line turns each field into a flag with the same help, choices and range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

__all__ = ["Options", "declare"]


def declare(
    default: object,
    help: str,
    *,
    choices: Sequence[object] | None = None,
    range: tuple[float, float] | None = None,
) -> Any:
    """Declare a dataclass field that is an option.

    Args:
        help: one clause for ``--help`` and the docs.
        choices: all allowed values.
        range: smallest and largest allowed value.
    """
    metadata: dict[str, object] = {"help": help}
    if choices is not None:
        metadata["choices"] = tuple(choices)
    if range is not None:
        metadata["range"] = range
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Base of all option classes; checks every field that is set (not None), and both entries of a pair.

    Raises:
        ValueError: a value is not among its field's choices, outside its range, or a float that is not finite.
    """

    def __post_init__(self) -> None:
        for item in fields(self):
            given = getattr(self, item.name)
            for value in given if isinstance(given, tuple) else (given,):
                if value is not None:
                    _check(item, value)


def _check(item: Field[Any], value: Any) -> None:
    choices = item.metadata.get("choices")
    if choices is not None and value not in choices:
        raise ValueError(f"{item.name} is {value!r}; choose one of {', '.join(map(str, choices))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{item.name} is {value}; it must be a finite number")
    low, high = item.metadata.get("range", (None, None))
    if low is not None and not low <= value <= high:
        raise ValueError(f"{item.name} is {value}; it must lie between {low:g} and {high:g}")
