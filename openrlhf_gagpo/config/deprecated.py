"""Flags that still work for one minor release, and what they mean in current flags.

A deprecated flag is declared here with the sentence that names its successor, and translated once the values of all
layers are known. It is neither shown nor written to a run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from openrlhf_gagpo.config.flag import Disposition, Flag

__all__ = ["DEPRECATED_FLAGS", "translate"]

_INVALID = "algo.advantage.invalid_penalty"
_INADMISSIBLE = "algo.advantage.inadmissible_penalty"
_RULE = "algo.advantage.invalid_rule"

DEPRECATED_FLAGS: tuple[Flag, ...] = (
    Flag(
        _RULE,
        str,
        None,
        Disposition.BOTH,
        "what makes a step invalid",
        choices=("format", "action", "either"),
        replaces=_INVALID,
        deprecated=f"--{_INVALID} for malformed responses and --{_INADMISSIBLE} for unrecognised actions",
    ),
)


def _by_rule(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate one penalty and a rule into two penalties."""
    price = values[_INVALID]
    return {
        "format": {},
        "action": {_INVALID: 0.0, _INADMISSIBLE: price},
        "either": {_INADMISSIBLE: price},
    }[values[_RULE]]


_MEANING: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {_RULE: _by_rule}


def translate(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, for each deprecated flag that is set, the values that it stands for."""
    return {flag.name: _MEANING[flag.name](values) for flag in DEPRECATED_FLAGS if values[flag.name] is not None}
