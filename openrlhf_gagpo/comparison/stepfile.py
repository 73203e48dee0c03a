"""Plain JSON lines, one step a line, as any program can write them; docs/credit.md describes the format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_gagpo.comparison.steps import Steps
from openrlhf_gagpo.credit import StepBatch
from openrlhf_gagpo.credit.derive import following_states, step_ends, text_keys
from openrlhf_gagpo.errors import StepBatchError, StepFileError

__all__ = ["COLUMNS", "read_steps"]

_LARGEST = 10**9
"""Numbers of steps and tokens beyond it are a mistake."""


def _is_key(value: object) -> bool:
    return type(value) in (str, int)


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_switch(value: object) -> bool:
    return type(value) in (bool, int) and value in (0, 1)


_Kind = tuple[Callable[[object], bool], str]
_KEY: _Kind = (_is_key, "text or a whole number")
_NUMBER: _Kind = (_is_number, "a number")
_COUNT: _Kind = (_is_count, f"a whole number from 0 to {_LARGEST}")
_SWITCH: _Kind = (_is_switch, "true or false")

_IDENTITY = ("group", "traj", "step", "state")
_REQUIRED: Mapping[str, _Kind] = {"group": _KEY, "traj": _KEY, "step": _COUNT, "state": _KEY, "reward": _NUMBER}
_OPTIONAL: Mapping[str, _Kind] = {
    "next_state": _KEY,
    "action": _KEY,
    "success": _SWITCH,
    "terminated": _SWITCH,
    "truncated": _SWITCH,
    "invalid": _SWITCH,
    "inadmissible": _SWITCH,
    "n_tokens": _COUNT,
    "value": _NUMBER,
    "ig": _NUMBER,
}
COLUMNS = (*_REQUIRED, *_OPTIONAL)
"""All names that a line may have and that are read."""
_MAY_LACK = ("next_state", "ig")
"""Columns that some steps may have and others not."""


def read_steps(path: Path) -> Steps:
    """Read the steps of a file; lines may come in any order.

    Raises:
        StepFileError: a line is not a step, or the steps do not form whole trajectories; the message names the line.
    """
    lines = _read(path)
    rows, numbers = list(lines.values()), list(lines)
    columns = _columns(path, rows, numbers)
    try:
        for name in ("group", "traj", "action"):
            if name in columns:
                columns[name] = text_keys(name, columns[name])
        _complete(columns)
        StepBatch.from_columns(**columns)
    except StepBatchError as error:
        place = f"{path}" if error.row is None else f"{path}, line {numbers[error.row]}"
        raise StepFileError(f"{place}: {error}") from error
    return Steps(columns, [{name: row[name] for name in _IDENTITY} for row in rows])


def _read(path: Path) -> dict[int, dict[str, Any]]:
    """Return the objects of a file by the number of their line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StepFileError(
            f"{path} is not UTF-8 text; give JSON lines, or the rollouts that a run recorded"
        ) from error
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise StepFileError(f"{path}, line {number} is not JSON; write one step a line") from error
        if not isinstance(row, dict):
            raise StepFileError(f"{path}, line {number} is not a JSON object; write one step a line")
        rows[number] = row
    if not rows:
        raise StepFileError(f"{path} holds no step; write one step a line")
    return rows


def _columns(path: Path, rows: Sequence[dict[str, Any]], numbers: Sequence[int]) -> dict[str, Any]:
    """Return the checked columns that the file has."""
    present = {name for row in rows for name, value in row.items() if name in _OPTIONAL and value is not None}
    columns: dict[str, Any] = {}
    expected = {**_REQUIRED, **{name: kind for name, kind in _OPTIONAL.items() if name in present}}
    for name, (holds, words) in expected.items():
        column = [row.get(name) for row in rows]
        for value, number in zip(column, numbers, strict=True):
            if value is None and name in _MAY_LACK:
                continue
            if value is None:
                rest = "every step needs it" if name in _REQUIRED else "give it to every step or to none"
                raise StepFileError(f"{path}, line {number} has no {name}; {rest}")
            if not holds(value):
                raise StepFileError(f"{path}, line {number}: {name} is {json.dumps(value)}; it must be {words}")
        columns[name] = column
    return columns


def _complete(columns: dict[str, Any]) -> None:
    """Fill in the columns that follow from others, and put a number into the gaps of ``ig``."""
    steps = len(columns["step"])
    states, known = columns["state"], columns.pop("next_state", [None] * steps)
    keys = text_keys("state and next_state", [*states, *(key for key in known if key is not None)])
    columns["state"] = keys[:steps]
    given = iter(keys[steps:])
    following = following_states(columns["traj"], columns["step"], columns["state"])
    columns["next_state"] = [other if key is None else next(given) for key, other in zip(known, following, strict=True)]
    columns["terminated"], columns["truncated"] = step_ends(
        columns["traj"], columns["step"], columns.get("terminated"), columns.get("truncated")
    )
    if "ig" in columns:
        columns["ig"] = [float("nan") if gain is None else gain for gain in columns["ig"]]
