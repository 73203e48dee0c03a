"""The figures of the report. Each is a function of the run's rows that returns an SVG, or None without data."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from openrlhf_gagpo.report.data import Evaluation, Points, points

__all__ = [
    "INK",
    "PALETTE",
    "Panel",
    "band",
    "draw_points",
    "new_axes",
    "panels",
    "save",
    "share_axis",
    "show_legend",
    "svg_uri",
]

Rows = Sequence[dict[str, Any]]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8b8b8")
"""Colours that colour-blind readers can tell apart, also in grey print (after Okabe and Ito)."""
INK = "#333333"

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    # Fixed, so that equal runs give equal files.
    "svg.hashsalt": "run",
}


@dataclass(frozen=True)
class Panel:
    """One figure with its title and note."""

    title: str
    note: str
    uri: str


def new_axes(width: float = 4.7, height: float = 2.5) -> tuple[Figure, Axes]:
    """Create an empty figure in the house style, size in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.set_xlabel("iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    return figure, axes


def save(figure: Figure, target: Path | BinaryIO, kind: str) -> None:
    """Write the figure as "svg" or "png"; equal figures give equal bytes."""
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context(_STYLE):
        figure.savefig(target, format=kind, dpi=160, metadata=metadata)


def svg_uri(figure: Figure) -> str:
    """Return the figure as a data URI."""
    buffer = io.BytesIO()
    save(figure, buffer, "svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_points(axes: Axes, series: Points, label: str, color: str, **style: Any) -> bool:
    """Draw a series; points are marked if there are few, or if gaps would hide a single one."""
    if series.empty:
        return False
    style.setdefault("marker", "o" if len(series.x) <= 30 or np.isnan(series.y).any() else "")
    axes.plot(series.x, series.y, color=color, label=label, markersize=3, **style)
    return True


def band(axes: Axes, x: np.ndarray, low: ArrayLike, high: ArrayLike, color: str) -> None:
    """Shade an interval; draw bars if it is a single point, which would have no area."""
    if len(x) == 1:
        axes.vlines(x, low, high, color=color, alpha=0.5, linewidth=1.5)
    else:
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def share_axis(axes: Axes) -> None:
    """Set up a vertical axis in per cent that always shows the whole range."""
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def show_legend(axes: Axes) -> None:
    """Add a legend if there is more than one series."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        with matplotlib.rc_context(_STYLE):
            axes.legend(loc="best", ncols=2, handlelength=1.4, columnspacing=1.2)


def _lines(rows: Rows, names: dict[str, str], *, shares: bool = False, log: bool = False) -> str | None:
    """Draw several metrics (name -> label) on one pair of axes."""
    figure, axes = new_axes()
    drawn = [draw_points(axes, points(rows, n), label, PALETTE[i]) for i, (n, label) in enumerate(names.items())]
    if not any(drawn):
        return None
    if shares:
        share_axis(axes)
    positive = np.concatenate([values[values > 0] for values in (points(rows, name).y for name in names)])
    # Within one decade a log axis has no round labels and shows nothing that a linear one hides.
    if log and positive.size and positive.max() > 10 * positive.min():
        axes.set_yscale("log")
    show_legend(axes)
    return svg_uri(figure)


def _success(rows: Rows, evals: dict[str, list[Evaluation]]) -> str | None:
    figure, axes = new_axes()
    drawn = draw_points(axes, points(rows, "rollout/success"), "training", PALETTE[6])
    for color, (split, found) in zip(PALETTE, evals.items(), strict=False):
        x, y, low, high = (np.array([getattr(e, k) for e in found]) for k in ("iteration", "success", "low", "high"))
        drawn |= draw_points(axes, Points(x, y), split or "evaluation", color, marker="o")
        band(axes, x, low, high, color)
        rates = [(e.iteration, e.greedy.success) for e in found if e.greedy is not None]
        greedy = Points(np.array([at for at, _ in rates]), np.array([rate for _, rate in rates]))
        drawn |= draw_points(axes, greedy, f"{split} greedy".strip(), color, marker="s", linestyle="--")
    if not drawn:
        return None
    share_axis(axes)
    show_legend(axes)
    return svg_uri(figure)


def _with_eval(rows: Rows, eval_rows: Rows, train_name: str, eval_name: str) -> str | None:
    figure, axes = new_axes()
    drawn = draw_points(axes, points(rows, train_name), "training", PALETTE[6])
    splits = sorted({str(row.get("split", "")) for row in eval_rows})
    for color, split in zip(PALETTE, splits, strict=False):
        of_split = [row for row in eval_rows if str(row.get("split", "")) == split]
        drawn |= draw_points(axes, points(of_split, eval_name), split or "evaluation", color, marker="o")
    if not drawn:
        return None
    show_legend(axes)
    return svg_uri(figure)


def _time(rows: Rows) -> str | None:
    """Draw the seconds per phase, stacked; the rest of the iteration is "other"."""
    phases = ("rollout", "credit", "forward", "update", "sync", "checkpoint", "eval")
    series = {phase: points(rows, f"time/{phase}") for phase in phases}
    total = points(rows, "time/iteration")
    present = [s for s in (*series.values(), total) if not s.empty]
    if not present:
        return None
    first, last = int(min(s.x.min() for s in present)), int(max(s.x.max() for s in present))
    edges = np.arange(first, last + 2) - 0.5

    def dense(s: Points) -> np.ndarray:
        values = np.zeros(last - first + 1)
        values[s.x.astype(int) - first] = np.nan_to_num(s.y)
        return values

    figure, axes = new_axes()
    base = np.zeros(last - first + 1)
    stack = {phase: dense(s) for phase, s in series.items() if not s.empty}
    if not total.empty:
        stack["other"] = np.maximum(0.0, dense(total) - sum(stack.values(), base))
    for color, (phase, values) in zip(PALETTE, stack.items(), strict=False):
        axes.stairs(base + values, edges, baseline=base, fill=True, color=color, label=phase)
        base = base + values
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    with matplotlib.rc_context(_STYLE):
        figure.legend(handles, labels, loc="outside upper center", ncols=4, handlelength=1.0, columnspacing=1.2)
    return svg_uri(figure)


def _advantages(rows: Rows) -> str | None:
    figure, axes = new_axes()
    low, high = points(rows, "credit/advantage_min"), points(rows, "credit/advantage_max")
    drawn = draw_points(axes, high, "largest", PALETTE[5]) | draw_points(axes, low, "smallest", PALETTE[3])
    drawn |= draw_points(axes, points(rows, "credit/advantage_iqr"), "interquartile range", PALETTE[0])
    drawn |= draw_points(axes, points(rows, "credit/advantage_std"), "standard deviation", PALETTE[2])
    if not drawn:
        return None
    show_legend(axes)
    return svg_uri(figure)


def panels(rows: Rows, eval_rows: Rows, evals: dict[str, list[Evaluation]]) -> list[Panel]:
    """Return all figures for which the rows have data, in reading order."""
    of: Callable[..., str | None] = _lines
    candidates = [
        (
            "Success rate",
            "Each iteration samples new training episodes; bands are 95 % intervals over the evaluated tasks.",
            _success(rows, evals),
        ),
        (
            "Return",
            "Mean undiscounted sum of environment rewards of an episode.",
            _with_eval(rows, eval_rows, "rollout/return", "eval/return"),
        ),
        (
            "Episode length",
            "Mean environment steps of an episode.",
            _with_eval(rows, eval_rows, "rollout/episode_length", "eval/episode_length"),
        ),
        ("Gradient norm", "Before clipping.", of(rows, {"policy/grad_norm": "gradient norm"}, log=True)),
        (
            "KL divergence",
            "From the reference model, and of the update itself; nats.",
            of(rows, {"policy/kl_ref": "from reference", "policy/approx_kl": "of the update"}),
        ),
        (
            "Entropy",
            "Of the next-token distribution over response tokens; nats.",
            of(rows, {"policy/entropy": "entropy"}),
        ),
        (
            "Clipped ratios",
            "Share of probability ratios in the clipped part of the objective.",
            of(rows, {"policy/clip_share": "clip share"}),
        ),
        ("Advantages", "Spread and extremes over the steps of an iteration.", _advantages(rows)),
        (
            "Large advantages and idle groups",
            "Steps whose advantage is above 1 or below -1; groups without spread; groups without any reward.",
            of(
                rows,
                {
                    "credit/advantage_abs_gt1_share": "|A| > 1",
                    "credit/degenerate_group_share": "no spread",
                    "credit/reward_free_group_share": "reward-free",
                },
                shares=True,
            ),
        ),
        (
            "State-group size",
            "Mean number of steps that share a state within a rollout group.",
            of(rows, {"credit/state_group_size_mean": "steps per state"}),
        ),
        (
            "Singleton states",
            "Share of steps whose state no other step of the group visited.",
            of(rows, {"credit/singleton_share": "singletons"}, shares=True),
        ),
        (
            "Responses",
            "Shares of responses without the required form, of actions that were not possible, of responses cut by "
            "the token limit, and of episodes cut by the step limit.",
            of(
                rows,
                {
                    "rollout/format_invalid_share": "malformed",
                    "rollout/inadmissible_share": "inadmissible",
                    "rollout/length_capped_share": "token limit",
                    "rollout/truncated_share": "step limit",
                },
                shares=True,
            ),
        ),
        (
            "Sampler against trainer",
            "Absolute difference of log-probabilities for the same tokens and weights; nats.",
            of(
                rows,
                {"policy/sampling_logprob_diff_mean": "mean", "policy/sampling_logprob_diff_max": "largest"},
                log=True,
            ),
        ),
        (
            "Left out and repaired",
            "Episodes lost to environment failures, groups and steps left out of the update, prompts shortened or "
            "too long, environment processes replaced.",
            of(
                rows,
                {
                    "rollout/faulted_episodes": "faulted episodes",
                    "rollout/skipped_groups": "skipped groups",
                    "credit/rows_dropped": "dropped steps",
                    "rollout/prompts_cut": "shortened prompts",
                    "rollout/prompts_too_long": "too long prompts",
                    "env/restarts": "env restarts",
                },
            ),
        ),
        ("Time per iteration", "By phase.", _time(rows)),
    ]
    return [Panel(title, note, uri) for title, note, uri in candidates if uri is not None]
