"""One configuration value: its name, type and default, and the conversion of a raw value into a checked one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from openrlhf_gagpo.errors import ConfigError

__all__ = [
    "AT_LEAST_ONE",
    "NEVER_OR_EVERY",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SEED",
    "SHARE",
    "SHARE_ABOVE_ZERO",
    "SHARE_BELOW_ONE",
    "Bound",
    "Disposition",
    "Flag",
    "between",
    "negation",
]


@dataclass(frozen=True)
class Bound:
    """The range of numbers that a flag takes."""

    words: str
    """Completes "it must be ..."."""
    holds: Callable[[float], bool] = field(compare=False)


AT_LEAST_ONE = Bound("at least 1", lambda value: value >= 1)
NEVER_OR_EVERY = Bound("at least 1, or -1 for never", lambda value: value == -1 or value >= 1)
NOT_NEGATIVE = Bound("0 or more", lambda value: 0 <= value < math.inf)
POSITIVE = Bound("more than 0", lambda value: 0 < value < math.inf)
SEED = Bound("from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32)
SHARE = Bound("between 0 and 1", lambda value: 0 <= value <= 1)
SHARE_ABOVE_ZERO = Bound("more than 0 and at most 1", lambda value: 0 < value <= 1)
SHARE_BELOW_ONE = Bound("from 0 to below 1", lambda value: 0 <= value < 1)


def between(low: float, high: float) -> Bound:
    """Return the bound from ``low`` to ``high``, both included."""
    words = f"between {low:g} and {high:g}" if math.isfinite(high) else f"{low:g} or more"
    return Bound(words, lambda value: low <= value <= high)


class Disposition(Enum):
    """Which backends act on a flag."""

    BOTH = "both backends"
    DISTRIBUTED = "the distributed backend"
    LOCAL = "the local backend"
    REFUSED = "nobody"

    def honoured_by(self, one_process: bool) -> bool:
        """Return whether a backend acts on such a flag; ``one_process`` says which kind of backend it is."""
        return self is Disposition.BOTH or self is (Disposition.LOCAL if one_process else Disposition.DISTRIBUTED)


# Beyond it neither numpy nor torch can hold a number.
_INT_LIMIT = 2**63
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Flag:
    """A flag ``--<name>``; ``kind`` ``dict`` means a mapping given as JSON or as key=value pairs."""

    name: str
    kind: type
    default: Any
    disposition: Disposition
    help: str
    choices: tuple[Any, ...] | None = None
    nargs: int | str | None = None
    """Number of values as in argparse: an exact count, "+" or "*"; None for one value."""
    repeatable: bool = False
    """Whether each use on the command line adds to a list."""
    command_line_only: bool = False
    secret: bool = False
    """Whether the value is never shown and never written to a run folder."""
    clock_default: bool = False
    """Whether the default is a strftime pattern that OpenRLHF fills with the current time."""
    bound: Bound | None = None
    """The range of allowed numbers; a flag with several values checks each of them."""
    deprecated: str = ""
    """What to set instead of a deprecated flag, which still works for now (see ``config.deprecated``)."""
    replaces: str = ""
    """A flag whose value a deprecated one changes by its nature; both may be set."""

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return self.nargs is not None or self.repeatable

    def coerce(self, raw: Any, where: str) -> Any:
        """Return the checked value of ``raw``, a command-line string or a recipe value.

        Args:
            raw: string(s) from the command line, or a recipe's entry as YAML reads it.
            where: name of the place for an error message, such as ``--train.seed``.

        Raises:
            ConfigError: the type, count or choice is wrong.
        """
        if raw is None:
            if self.default is None:
                return None
            raise ConfigError(f"{where} needs a value; leave the line out to get the default {self.show(self.default)}")
        if self.kind is dict:
            return _mapping(raw, where)
        if not self.is_list:
            return self._one(raw, where)
        items = list(raw) if isinstance(raw, (list, tuple)) else [raw]
        if isinstance(self.nargs, int) and len(items) != self.nargs:
            raise ConfigError(f"{where} wants {self.nargs} values, not {len(items)}")
        if self.nargs == "+" and not items:
            raise ConfigError(f"{where} wants at least one value")
        values = [self._one(item, where) for item in items]
        # OpenRLHF's default of a list flag may be a single value.
        return self.default if values == [self.default] else values

    def _one(self, raw: Any, where: str) -> Any:
        value = _convert(raw, self.kind)
        if value is None:
            raise ConfigError(f"{where} wants {_WORDS[self.kind]}, not {raw!r}")
        if self.choices is not None and value not in self.choices:
            raise ConfigError(f"{where} must be one of {', '.join(map(str, self.choices))}, not {raw!r}")
        if self.kind is int and abs(value) >= _INT_LIMIT:
            raise ConfigError(f"{where} is {value}; whole numbers must be below 2^63")
        if self.bound is not None and not self.bound.holds(value):
            raise ConfigError(f"{where} is {value}; it must be {self.bound.words}")
        return value

    def show(self, value: Any) -> str:
        """Return ``value`` as it is written on the command line."""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, dict):
            return json.dumps(value)
        if isinstance(value, (list, tuple)):
            return " ".join(map(str, value))
        return str(value)


def negation(name: str) -> str:
    """Return the flag that switches off the boolean ``name``: ``a.no_b`` for ``a.b`` and ``a.b`` for ``a.no_b``."""
    section, dot, last = name.rpartition(".")
    return section + dot + (last[3:] if last.startswith("no_") else f"no_{last}")


def _convert(raw: Any, kind: type) -> Any:
    """Return ``raw`` as ``kind``, or None if it is not one."""
    if kind is bool:
        return raw if isinstance(raw, bool) else None
    if isinstance(raw, bool):
        return None
    if kind is str:
        # YAML reads an unquoted 1 as a number, but a name may consist of digits.
        # A file's name cannot hold the character NUL, which a recipe can.
        return str(raw) if isinstance(raw, (str, int, float)) and "\0" not in str(raw) else None
    if not isinstance(raw, (str, int, float)) or (kind is int and isinstance(raw, float)):
        return None
    try:
        # Strings are accepted, because YAML 1.1 reads 1e-6 as text.
        value = kind(raw)
    except (ValueError, OverflowError):
        return None
    return None if isinstance(value, float) and math.isnan(value) else value


def _mapping(raw: Any, where: str) -> dict[str, Any]:
    """Return a mapping from a mapping, or from strings that are JSON objects or ``key=value``."""
    if isinstance(raw, dict):
        return {str(key): value for key, value in raw.items()}
    merged: dict[str, Any] = {}
    for item in [raw] if isinstance(raw, str) else _strings(raw, where):
        if item.lstrip().startswith("{"):
            try:
                merged.update(json.loads(item))
            except json.JSONDecodeError as error:
                raise ConfigError(f"{where} is not valid JSON ({error}): {item!r}") from None
            continue
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{where} wants a JSON object or key=value, not {item!r}")
        merged[key.strip()] = _json_or_text(text)
    return merged


def _strings(raw: Any, where: str) -> Sequence[str]:
    if isinstance(raw, (list, tuple)) and all(isinstance(item, str) for item in raw):
        return raw
    raise ConfigError(f"{where} wants a mapping of option names to values, not {raw!r}")


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
