"""Metrics of one or several runs over a common axis, drawn as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from markupsafe import Markup, escape

from openrlhf_gagpo.report.data import number
from openrlhf_gagpo.report.visible import visible
from openrlhf_gagpo.viewer.scale import Scale

__all__ = ["AXES", "COLORS", "FAMILIES", "Curve", "Panel", "RunRows", "panels"]

AXES: Mapping[str, str] = {"iteration": "iteration", "steps": "environment steps", "time": "wall time, min"}
"""Choice of the x-axis -> its label."""
COLORS = 8
"""Colours before they repeat."""

_KEY = (
    "eval/success",
    "rollout/success",
    "rollout/return",
    "rollout/episode_length",
    "rollout/format_invalid_share",
    "rollout/inadmissible_share",
    "credit/advantage_std",
    "critic/explained_variance",
    "policy/entropy",
    "policy/kl_ref",
    "policy/loss",
    "time/iteration",
)
FAMILIES = ("main", "eval", "rollout", "credit", "critic", "policy", "time", "env")
"""Which metrics are drawn: a chosen few, or all that start with the name."""

WIDTH, HEIGHT = 380, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 24
_MOST_POINTS = 300
_FEW = 40
"""Points of one curve that are drawn as dots; more would hide the line, and show when they are pointed at."""


@dataclass(frozen=True)
class RunRows:
    """What a run has logged."""

    title: str
    color: int
    """Position among the colours."""
    metrics: Sequence[Mapping[str, Any]]
    evals: Sequence[Mapping[str, Any]]
    started_s: float = 0.0
    """Seconds from the run's start to its first evaluation or iteration."""

    def positions(self, axis: str) -> dict[int, float]:
        """Return the place of each iteration on the axis; 0 is before training."""
        rows = sorted({row["iteration"]: row for row in self.metrics}.items())
        iterations = [iteration for iteration, _ in rows]
        if axis == "iteration":
            logged = {row["iteration"] for row in self.evals}
            return {i: float(i) for i in {0, *iterations, *logged}}
        if axis == "time":
            return self._ends_in_minutes(rows)
        totals = accumulate(_amount(row, "rollout/steps") for _, row in rows)
        return {0: 0.0, **dict(zip(iterations, totals, strict=True))}

    def _ends_in_minutes(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[int, float]:
        """Return when each iteration and the evaluation after it had ended; pauses of the run do not count."""
        evaluations = {row["iteration"]: _amount(row, "time/eval") for row in self.evals}
        now = self.started_s
        ends = {}
        for iteration, row in [(0, {}), *rows]:
            now += _amount(row, "time/iteration") + evaluations.get(iteration, 0.0)
            ends[iteration] = now / 60
        return ends


def _amount(row: Mapping[str, Any], name: str) -> float:
    value = number(row.get(name))
    return value if math.isfinite(value) else 0.0


@dataclass(frozen=True)
class Dot:
    """One drawn value."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One run in one panel, in the panel's coordinates."""

    title: str
    color: int
    lines: Sequence[str]
    """Points of polylines; a value that was not finite leaves a gap."""
    band: str
    """Points of the polygon of the 95 % intervals, or ""."""
    dots: Sequence[Dot]
    last: float

    @property
    def marks(self) -> Markup:
        """The dots as SVG; made here because a template is slow with thousands of them."""
        kind, radius = ("dot", 2) if len(self.dots) < _FEW else ("hit", 4)
        circles = (
            f'<circle class="{kind}" cx="{dot.x:.1f}" cy="{dot.y:.1f}" r="{radius}">'
            f"<title>{escape(visible(dot.text))}</title></circle>"
            for dot in self.dots
        )
        return Markup("".join(circles))


@dataclass(frozen=True)
class Panel:
    """One metric of all runs."""

    name: str
    curves: Sequence[Curve]
    x: Scale
    y: Scale
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _Series:
    run: RunRows
    points: Sequence[tuple[int, float, float]]
    """Iteration, x and y (NaN for a gap) in order of x."""
    low: Mapping[int, float]
    high: Mapping[int, float]


def panels(runs: Sequence[RunRows], axis: str, family: str) -> list[Panel]:
    """Draw the chosen metrics; those that no run has, or that are 0 throughout, are left out."""
    names = _names(runs, family)
    made = (_panel(name, runs, axis) for name in names)
    return [panel for panel in made if panel is not None]


def _names(runs: Sequence[RunRows], family: str) -> list[str]:
    if family not in FAMILIES or family == FAMILIES[0]:
        return list(_KEY)
    rows = [row for run in runs for row in (*run.metrics, *run.evals)]
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(f"{family}/"))
    return [name for name in names if not name.startswith(("eval/success_low", "eval/success_high"))]


def _panel(name: str, runs: Sequence[RunRows], axis: str) -> Panel | None:
    series = [found for run in runs if (found := _series(name, run, axis)).points]
    values = [y for item in series for _, _, y in item.points if math.isfinite(y)]
    if not values or not any(values):
        return None
    ends = [end for item in series for end in (*item.low.values(), *item.high.values())]
    x = Scale.over([x for item in series for _, x, _ in item.points], _LEFT, WIDTH - _RIGHT, ticks=5)
    y = Scale.over([*values, *ends], HEIGHT - _BOTTOM, _TOP, ticks=4)
    return Panel(name, [_curve(item, x, y, axis) for item in series], x, y)


def _series(name: str, run: RunRows, axis: str) -> _Series:
    positions = run.positions(axis)
    source = run.evals if name.startswith("eval/") else run.metrics
    rows = {row["iteration"]: row for row in source if name in row and row["iteration"] in positions}
    points = [(i, positions[i], number(row[name])) for i, row in sorted(rows.items())]
    bounds: list[dict[int, float]] = [{}, {}]
    if name == "eval/success":
        for bound, end in zip(bounds, ("low", "high"), strict=True):
            bound |= {
                i: value for i, row in rows.items() if math.isfinite(value := number(row.get(f"eval/success_{end}")))
            }
    return _Series(run, points[:: max(1, math.ceil(len(points) / _MOST_POINTS))], *bounds)


def _curve(series: _Series, x: Scale, y: Scale, axis: str) -> Curve:
    lines: list[list[str]] = [[]]
    dots: list[Dot] = []
    for iteration, place, value in series.points:
        if not math.isfinite(value):
            lines.append([])
            continue
        lines[-1].append(f"{x(place):.1f},{y(value):.1f}")
        where = f"iteration {iteration}" + ("" if axis == "iteration" else f", {place:,.4g} {AXES[axis]}")
        dots.append(Dot(x(place), y(value), f"{series.run.title}, {where}: {value:.4g}"))
    inside = [(place, i) for i, place, _ in series.points if i in series.low and i in series.high]
    there = [f"{x(place):.1f},{y(series.high[i]):.1f}" for place, i in inside]
    back = [f"{x(place):.1f},{y(series.low[i]):.1f}" for place, i in reversed(inside)]
    last = next(value for _, _, value in reversed(series.points) if math.isfinite(value)) if dots else math.nan
    return Curve(
        title=series.run.title,
        color=series.run.color % COLORS,
        lines=[" ".join(line) for line in lines if len(line) > 1],
        band=" ".join(there + back) if len(inside) > 1 else "",
        dots=dots,
        last=last,
    )
