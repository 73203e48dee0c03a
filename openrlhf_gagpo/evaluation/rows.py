"""Results as rows of one Markdown table, whatever was evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["difference_lines", "table"]

_COLUMNS = (
    "policy", "agent", "tasks", "temperature", "success", "score", "steps", "invalid", "pass@k", "tokens", "requests",
    "cost", "faulted", "prompt", "data",
)  # fmt: skip
_WORDS = {"success": "success", "score": "score", "length": "steps"}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with one row per content of a ``result.json``."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), *(_line(_cells(result)) for result in results)]
    return "\n".join(lines) + "\n"


def difference_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the lines that state the result of ``result.differences``."""
    lines = [f"paired differences over {found['tasks']} tasks, with 95 % intervals:"]
    for measure, word in _WORDS.items():
        entry = found[measure]
        p_value = "" if entry["p_value"] is None else f", p {entry['p_value']:.2g}"
        lines.append(f"  {word} {_interval(entry, signed=True)}{p_value}")
    if found["settings"]:
        lines.append(f"  the two differ in {', '.join(found['settings'])}")
    return lines


def _cells(result: Mapping[str, Any]) -> list[str]:
    settings, found = result["settings"], result["numbers"]
    # Trials of an agent and further samples of a task differ in what they may know; the first pass@k is success.
    chances = [f"{k}: {entry['mean']:.3f}" for k, entry in found["pass_at"].items() if k != "1"]
    tokens = found["prompt_tokens"] + found["completion_tokens"]
    played = found["samples"] + sum(found["faulted"].values())
    cost = found["cost"]
    trials = f" ({len(found['success_by_trial'])} trials)" if found["success_by_trial"] else ""
    temperature = settings["temperature"]
    return [
        result["label"],
        settings["agent"] + trials,
        f"{settings['environment']} {settings['split']}, {found['tasks']} x {settings['samples']}",
        "greedy" if temperature == 0 else f"{temperature:g}",
        _interval(found["success"]),
        _interval(found["score"]),
        _number(found["length"]["mean"], ".1f"),
        _number(found["format_invalid_share"], ".3f"),
        ", ".join(chances) or "-",
        _number(tokens / played if played else None, ".0f"),
        str(found["requests"]),
        "-" if cost is None else f"{cost['total']:.4g} {cost['currency']}",
        str(sum(found["faulted"].values())),
        settings["prompt_sha256"][:8],
        settings["environment_sha256"][:8],
    ]


def _interval(entry: Mapping[str, Any], *, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    if entry["low"] is None:
        return _number(entry["mean"], form)
    return f"{_number(entry['mean'], form)} [{entry['low']:{form}}, {entry['high']:{form}}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _line(cells: Sequence[str]) -> str:
    # A model may be called anything.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
