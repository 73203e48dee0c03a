"""Estimators written as plain loops: HGPO, GiGPO's similar states, REINFORCE++, A2TGPO and IGPO.

Each takes columns of steps in any order, without penalties, and returns one number per row in that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any

__all__ = ["a2tgpo", "discounted_returns", "hgpo", "igpo", "reinforce", "similar_sets"]

Columns = dict[str, Any]


def episodes(columns: Columns) -> dict[str, list[int]]:
    """Rows of each trajectory, by step."""
    rows: dict[str, list[int]] = {}
    for row in sorted(range(len(columns["step"])), key=lambda row: columns["step"][row]):
        rows.setdefault(columns["traj"][row], []).append(row)
    return rows


def discounted_returns(columns: Columns, gamma: float) -> list[float]:
    out = [0.0] * len(columns["step"])
    for rows in episodes(columns).values():
        for at, row in enumerate(rows):
            out[row] = sum(gamma**k * columns["reward"][later] for k, later in enumerate(rows[at:]))
    return out


def scores(columns: Columns) -> dict[str, float]:
    return {name: sum(columns["reward"][row] for row in rows) for name, rows in episodes(columns).items()}


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def spread(values: Sequence[float], ddof: int = 0) -> float:
    return math.sqrt(math.fsum((v - mean(values)) ** 2 for v in values) / max(len(values) - ddof, 1))


def deviation(value: float, values: Sequence[float], scale: Callable[[float], float] | None, ddof: int = 0) -> float:
    """``value`` less the mean of ``values``, over ``scale(std)`` if there is one; 0 if they hardly differ."""
    std = spread(values, ddof)
    if std <= 1e-9 * max(1.0, abs(mean(values))):
        return 0.0
    return (value - mean(values)) / (scale(std) if scale else 1.0)


def floored(std: float) -> float:
    return math.sqrt(std**2 + 1e-8) + 1e-6


def similar_sets(columns: Columns, threshold: float) -> list[tuple[str, str]]:
    """Per row its group and the text of the first state of its set, by first fit over trajectories and steps."""
    out: list[tuple[str, str]] = [("", "")] * len(columns["step"])
    firsts: dict[str, list[str]] = {}
    for row in sorted(range(len(out)), key=lambda row: (columns["traj"][row], columns["step"][row])):
        group, text = columns["group"][row], columns["state"][row]
        known = firsts.setdefault(group, [])
        match = next((first for first in known if SequenceMatcher(None, text, first).ratio() >= threshold), None)
        if match is None:
            known.append(text)
        out[row] = (group, text if match is None else match)
    return out


def hgpo(columns: Columns, *, gamma: float, history: int, alpha: float, base: bool, divide: bool) -> list[float]:
    returns, total = discounted_returns(columns, gamma), scores(columns)
    scale = (lambda std: std + 1e-6) if divide else None
    past: dict[int, list[str]] = {}
    for rows in episodes(columns).values():
        for at, row in enumerate(rows):
            past[row] = [columns["state"][earlier] for earlier in rows[: at + 1]]

    def cell(row: int, k: int) -> list[float]:
        return [
            returns[other]
            for other in past
            if columns["group"][other] == columns["group"][row]
            and len(past[other]) >= k
            and past[other][-k:] == past[row][-k:]
        ]

    out = []
    for row in range(len(returns)):
        entries = []
        if base:
            group = [total[name] for name in group_members(columns, columns["group"][row])]
            entries.append((0, deviation(total[columns["traj"][row]], group, scale, ddof=1)))
        for k in range(1, history + 2):
            if len(past[row]) >= k:
                entries.append((k, deviation(returns[row], cell(row, k), scale)))
        entries = [(k, a) for k, a in entries if abs(a) > 1e-12]
        whole = sum((k + 1) ** alpha for k, _ in entries) + 1e-6
        out.append(sum((k + 1) ** alpha / whole * a for k, a in entries))
    return out


def group_members(columns: Columns, group: str) -> list[str]:
    return list(dict.fromkeys(t for t, g in zip(columns["traj"], columns["group"], strict=True) if g == group))


def reinforce(columns: Columns, gamma: float) -> list[float]:
    returns = discounted_returns(columns, gamma)
    tokens = [value for value, count in zip(returns, columns["n_tokens"], strict=True) for _ in range(count)]
    if not tokens:
        return [0.0] * len(returns)
    return [deviation(value, tokens, lambda std: math.sqrt(max(std**2, 1e-8))) for value in returns]


def outcomes(columns: Columns, divide: bool) -> list[float]:
    total = scores(columns)
    return [
        deviation(total[name], [total[other] for other in group_members(columns, group)], floored if divide else None)
        for name, group in zip(columns["traj"], columns["group"], strict=True)
    ]


def measured(columns: Columns, rows: Iterable[int]) -> list[int]:
    return [row for row in rows if not math.isnan(columns["ig"][row])]


def a2tgpo(
    columns: Columns, *, gamma: float, alpha: float, beta: float, divide: bool = True, unbiased: bool = False
) -> tuple[list[float], list[float]]:
    """Advantage and factor of the clip range."""
    count, gain = len(columns["step"]), columns["ig"]
    z, later = [0.0] * count, [0.0] * count
    for row in measured(columns, range(count)):
        peers = [gain[other] for other in measured(columns, same_turn(columns, row))]
        z[row] = deviation(gain[row], peers, floored if divide else None)
    if unbiased:
        later = later_gains_less_others(columns, gamma, divide)
    else:
        for rows in episodes(columns).values():
            turns = measured(columns, rows)
            for at, row in enumerate(turns):
                left = turns[at:]
                later[row] = sum(gamma**k * z[other] for k, other in enumerate(left)) / math.sqrt(len(left))
    advantage = [o + alpha * d for o, d in zip(outcomes(columns, divide), later, strict=True)]
    return advantage, [1 + beta * (2 / (1 + math.exp(-value)) - 1) for value in z]


def same_turn(columns: Columns, row: int) -> list[int]:
    key = (columns["group"][row], columns["step"][row])
    return [at for at, other in enumerate(zip(columns["group"], columns["step"], strict=True)) if other == key]


def later_gains_less_others(columns: Columns, gamma: float, divide: bool) -> list[float]:
    gains = {**columns, "reward": [0.0 if math.isnan(gain) else gain for gain in columns["ig"]]}
    sums = discounted_returns(gains, gamma)
    out = []
    for row, value in enumerate(sums):
        others = [sums[other] for other in same_turn(columns, row) if other != row]
        out.append(value - mean(others) if others else 0.0)
    if not divide:
        return out
    squares = [
        mean([u**2 for u, other in zip(out, columns["group"], strict=True) if other == group])
        for group in columns["group"]
    ]
    return [u / floored(math.sqrt(square)) for u, square in zip(out, squares, strict=True)]


def igpo(
    columns: Columns,
    *,
    gamma: float,
    joint: bool,
    divide: bool = True,
    outcome_weight: float = 1.0,
    ig_weight: float = 1.0,
) -> list[float]:
    out = [0.0] * len(columns["step"])
    scale = floored if divide else None
    total = {name: outcome_weight * score for name, score in scores(columns).items()}
    for name, rows in episodes(columns).items():
        group = columns["group"][rows[0]]
        group_rows = [row for row, other in enumerate(columns["group"]) if other == group]
        gains = [ig_weight * columns["ig"][row] for row in measured(columns, group_rows)]
        results = [total[other] for other in group_members(columns, group)]
        following = deviation(total[name], results + gains if joint else results, scale)
        for row in reversed(rows):
            if not math.isnan(columns["ig"][row]):
                entries = gains + results if joint else gains
                following = deviation(ig_weight * columns["ig"][row], entries, scale) + gamma * following
            out[row] = following
    return out
