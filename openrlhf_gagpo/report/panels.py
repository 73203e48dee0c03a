"""The figures of a run's report: what is drawn, from which metrics, in reading order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, PercentFormatter
from numpy.typing import NDArray

from openrlhf_gagpo.credit.diagnostics import SIZE_BINS
from openrlhf_gagpo.report.data import Evaluation, Points, points
from openrlhf_gagpo.report.figures import (
    PALETTE,
    Panel,
    band,
    draw_points,
    new_axes,
    share_axis,
    show_legend,
    svg_uri,
)

__all__ = ["Curves", "panels"]

Rows = Sequence[Mapping[str, Any]]

_BINS = 40
_PHASES = ("rollout", "columns", "credit", "forward", "update", "critic", "waiting", "sync", "checkpoint", "eval")


@dataclass(frozen=True)
class Curves:
    """What the figures are drawn from; any of it may be empty."""

    rows: Rows
    eval_rows: Rows
    evals: Mapping[str, Sequence[Evaluation]]
    advantages: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Advantages of the trained steps of some iterations, (S,) each, by a label."""

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last iteration of the run, evaluations included; the range of every figure."""
        iterations = [row["iteration"] for row in (*self.rows, *self.eval_rows)] or [0]
        return min(iterations), max(iterations)

    def of(self, name: str) -> Points:
        """Return a metric of training, NaN for an iteration without it, so that a line has a gap there."""
        known = points(self.rows, name)
        if not len(known.x):
            return known
        x = np.arange(min(row["iteration"] for row in self.rows), max(row["iteration"] for row in self.rows) + 1)
        y = np.full(len(x), np.nan)
        y[known.x.astype(int) - x[0]] = known.y
        return Points(x.astype(float), y)

    def evaluated(self, name: str) -> dict[str, Points]:
        """Return a metric of evaluations by split; between two evaluations there is a line and no gap."""
        splits = sorted({str(row.get("split", "")) for row in self.eval_rows})
        of_split = {split: [row for row in self.eval_rows if str(row.get("split", "")) == split] for split in splits}
        return {split or "evaluation": points(rows, name) for split, rows in of_split.items()}

    def axes(self) -> tuple[Figure, Axes]:
        """Return axes over the iterations of the whole run."""
        figure, axes = new_axes()
        first, last = self.span
        axes.set_xlim(first - 0.5, last + 0.5)
        return figure, axes


Draw = Callable[[Curves], str | None]


@dataclass(frozen=True)
class _Lines:
    """A figure of lines over iterations; those that were 0 throughout are left out."""

    names: Mapping[str, str]
    """Metric -> label."""
    unit: str = ""
    shares: bool = False
    log: bool = False
    derive: Callable[[Curves], Mapping[str, Points]] | None = None
    """Returns further lines by label, which no metric holds as such."""

    def lines(self, curves: Curves) -> dict[str, Points]:
        """Return the lines that have a value, by label."""
        found = {label: curves.of(name) for name, label in self.names.items()}
        found |= self.derive(curves) if self.derive else {}
        return {label: line for label, line in found.items() if not line.empty}

    def __call__(self, curves: Curves) -> str | None:
        lines = {label: line for label, line in self.lines(curves).items() if not line.zero}
        if not lines:
            return None
        figure, axes = curves.axes()
        for color, (label, line) in zip(cycle(PALETTE), lines.items(), strict=False):
            draw_points(axes, line, label, color)
        if self.shares:
            share_axis(axes)
        positive = np.concatenate([line.y[line.y > 0] for line in lines.values()])
        # Within one decade a log axis has no round labels and shows nothing that a linear one hides.
        if self.log and positive.size and positive.max() > 10 * positive.min():
            axes.set_yscale("log")
        axes.set_ylabel(self.unit)
        # One line out of several that could be there still needs its name.
        show_legend(axes, least=1 if len(self.names) > 1 else 2)
        return svg_uri(figure)

    def zero(self, curves: Curves) -> bool:
        """Whether there are lines and all of them were 0 throughout."""
        lines = self.lines(curves).values()
        return bool(lines) and all(line.zero for line in lines)


def _success(curves: Curves) -> str | None:
    figure, axes = curves.axes()
    drawn = draw_points(axes, curves.of("rollout/success"), "training", PALETTE[6])
    for color, (split, found) in zip(PALETTE, curves.evals.items(), strict=False):
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


def _with_eval(name: str) -> Draw:
    """Return a figure of ``rollout/<name>`` and ``eval/<name>``."""

    def draw(curves: Curves) -> str | None:
        figure, axes = curves.axes()
        drawn = draw_points(axes, curves.of(f"rollout/{name}"), "training", PALETTE[6])
        for color, (split, line) in zip(PALETTE, curves.evaluated(f"eval/{name}").items(), strict=False):
            drawn |= draw_points(axes, line, split, color, marker="o")
        if not drawn:
            return None
        show_legend(axes)
        return svg_uri(figure)

    return draw


def _stacked(curves: Curves, parts: Mapping[str, Points]) -> tuple[Figure, Axes] | None:
    """Draw parts of a whole above each other, one column per iteration; iterations without values are empty."""
    shown = {label: part for label, part in parts.items() if not part.empty and not part.zero}
    if not shown:
        return None
    first = int(min(part.x.min() for part in shown.values()))
    last = int(max(part.x.max() for part in shown.values()))
    base = np.zeros(last - first + 1)
    figure, axes = curves.axes()
    for color, (label, part) in zip(cycle(PALETTE), shown.items(), strict=False):
        top = base.copy()
        top[part.x.astype(int) - first] += np.nan_to_num(part.y)
        axes.stairs(top, np.arange(first, last + 2) - 0.5, baseline=base, fill=True, color=color, label=label)
        base = top
    show_legend(axes)
    return figure, axes


def _phases(curves: Curves) -> dict[str, Points]:
    """Return the seconds of each phase within its iteration; the rest of the iteration is "other"."""
    parts = {phase: curves.of(f"time/{phase}") for phase in _PHASES}
    ahead = curves.of("time/ahead")
    if not ahead.empty:
        parts["rollout"] = Points(ahead.x, parts["rollout"].y - np.nan_to_num(ahead.y))
    total = curves.of("time/iteration")
    if not total.empty:
        known = np.sum([np.nan_to_num(part.y) for part in parts.values() if len(part.x)] or [np.zeros(len(total.y))], 0)
        parts["other"] = Points(total.x, np.maximum(0.0, np.nan_to_num(total.y) - known))
    return parts


def _time(curves: Curves) -> str | None:
    drawn = _stacked(curves, _phases(curves))
    if drawn is None:
        return None
    figure, axes = drawn
    axes.set_ylabel("seconds")
    axes.set_ylim(bottom=0)
    return svg_uri(figure)


def _group_sizes(curves: Curves) -> str | None:
    name = "credit/state_group_size_share/"
    drawn = _stacked(curves, {_bin(low, high): curves.of(name + label) for label, low, high in SIZE_BINS})
    if drawn is None:
        return None
    figure, axes = drawn
    share_axis(axes)
    return svg_uri(figure)


def _bin(low: int, high: float) -> str:
    if low == high:
        return str(low)
    return f"{low} to {high:.0f}" if np.isfinite(high) else f"{low} and more"


def _histogram(curves: Curves) -> str | None:
    """Draw how the advantages of some iterations are distributed, over bins that they share."""
    shown = {label: values[np.isfinite(values)] for label, values in curves.advantages.items()}
    shown = {label: values for label, values in shown.items() if np.any(values)}
    if not shown:
        return None
    figure, axes = new_axes()
    axes.xaxis.set_major_locator(AutoLocator())
    axes.set_xlabel("advantage")
    edges = np.histogram_bin_edges(np.concatenate(list(shown.values())), _BINS)
    for color, (label, values) in zip(PALETTE, shown.items(), strict=False):
        axes.stairs(np.histogram(values, edges)[0] / len(values), edges, color=color, label=label, linewidth=1.4)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("share of the steps")
    show_legend(axes)
    return svg_uri(figure)


def _ratio(numerator: Points, denominator: Points) -> Points:
    """Return the quotient of two metrics, NaN where one is missing or the second is 0."""
    if not (len(numerator.x) and len(denominator.x)):
        return Points(np.zeros(0), np.zeros(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = numerator.y / np.where(denominator.y > 0, denominator.y, np.nan)
    return Points(numerator.x, quotient)


def _steps_per_second(curves: Curves) -> dict[str, Points]:
    steps = curves.of("rollout/steps")
    return {
        "while playing": _ratio(steps, curves.of("time/rollout")),
        "whole iteration": _ratio(steps, curves.of("time/iteration")),
    }


def _tokens_per_second(curves: Curves) -> dict[str, Points]:
    steps, length, update = (curves.of(n) for n in ("rollout/steps", "rollout/response_tokens", "time/update"))
    sampled = (
        Points(steps.x, steps.y * length.y) if len(steps.x) and len(length.x) else Points(steps.x[:0], steps.y[:0])
    )
    return {
        "sampled, while playing": _ratio(sampled, curves.of("time/rollout")),
        "trained, while updating": _ratio(curves.of("policy/tokens_trained"), update),
    }


_PANELS: tuple[tuple[str, str, Draw], ...] = (
    (
        "Success rate",
        "Each iteration samples new training episodes; bands are 95 % intervals over the evaluated tasks.",
        _success,
    ),
    ("Return", "Mean undiscounted sum of environment rewards of an episode.", _with_eval("return")),
    ("Episode length", "Mean environment steps of an episode.", _with_eval("episode_length")),
    ("Response length", "Mean length of a response.", _Lines({"rollout/response_tokens": "response"}, "tokens")),
    (
        "Responses",
        "Shares of responses without the required form, of actions that were not possible, of responses cut by the "
        "token limit, and of episodes cut by the step limit.",
        _Lines(
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
        "Loss",
        "Mean over the optimizer steps of an iteration.",
        _Lines({"policy/loss": "with KL and entropy terms", "policy/policy_loss": "without"}),
    ),
    ("Learning rate", "At the last optimizer step.", _Lines({"policy/lr": "policy", "critic/lr": "critic"})),
    (
        "Gradient norm",
        "Before clipping.",
        _Lines({"policy/grad_norm": "policy", "critic/grad_norm": "critic"}, log=True),
    ),
    (
        "KL divergence",
        "From the reference model, and of the update itself.",
        _Lines({"policy/kl_ref": "from reference", "policy/approx_kl": "of the update"}, "nats"),
    ),
    (
        "Entropy",
        "Of the next-token distribution over response tokens.",
        _Lines({"policy/entropy": "entropy"}, "nats"),
    ),
    (
        "Clipped ratios",
        "Share of probability ratios in the clipped part of the objective.",
        _Lines({"policy/clip_share": "clip share"}),
    ),
    ("Critic's loss", "Half the squared error, with the value clip.", _Lines({"critic/loss": "loss"})),
    (
        "Critic's explained variance",
        "Of targets and returns of episodes that it was not trained on; 1 is all of it, 0 a constant.",
        _Lines({"critic/explained_variance": "targets", "critic/return_explained_variance": "returns"}),
    ),
    (
        "Advantages",
        "Spread and extremes over the steps of an iteration.",
        _Lines(
            {
                "credit/advantage_max": "largest",
                "credit/advantage_min": "smallest",
                "credit/advantage_iqr": "interquartile range",
                "credit/advantage_std": "standard deviation",
            }
        ),
    ),
    (
        "Distribution of advantages",
        "Of the trained steps, in the first and the last recorded iteration.",
        _histogram,
    ),
    (
        "Large advantages and idle groups",
        "Steps whose advantage is above 1 or below -1; groups without spread; groups without any reward.",
        _Lines(
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
        _Lines({"credit/state_group_size_mean": "steps per state"}),
    ),
    (
        "Steps by the size of their state group",
        "Share of the steps whose state so many steps of their rollout group visited; 1 is a singleton.",
        _group_sizes,
    ),
    (
        "Singleton states",
        "Share of steps whose state no other step of the group visited.",
        _Lines({"credit/singleton_share": "singletons"}, shares=True),
    ),
    (
        "Sampler against trainer",
        "Absolute difference of log-probabilities for the same tokens and weights.",
        _Lines(
            {"policy/sampling_logprob_diff_mean": "mean", "policy/sampling_logprob_diff_max": "largest"},
            "nats",
            log=True,
        ),
    ),
    (
        "Left out and repaired",
        "Episodes lost to environment failures, groups and steps left out of the update, prompts shortened or too "
        "long, environment processes replaced.",
        _Lines(
            {
                "rollout/faulted_episodes": "faulted episodes",
                "rollout/skipped_groups": "skipped groups",
                "credit/rows_dropped": "dropped steps",
                "rollout/prompts_cut": "shortened prompts",
                "rollout/prompts_too_long": "too long prompts",
                "env/restarts": "env restarts",
                "env/servers": "env servers lost",
            }
        ),
    ),
    ("Time per iteration", "By phase.", _time),
    ("Environment steps per second", "", _Lines({}, "steps per second", derive=_steps_per_second)),
    ("Response tokens per second", "", _Lines({}, "tokens per second", log=True, derive=_tokens_per_second)),
    (
        "Memory",
        "Taken on the machine by all processes; the most that the run's own process and PyTorch on its GPU have held.",
        _Lines(
            {
                "machine/memory_used_gib": "machine",
                "machine/process_memory_peak_gib": "process, peak",
                "machine/gpu_memory_peak_gib": "GPU, peak",
            },
            "GiB",
        ),
    ),
)


def panels(curves: Curves) -> tuple[list[Panel], list[str]]:
    """Return all figures for which there is data, and the titles of those left out because all was 0 throughout."""
    drawn = [Panel(title, note, uri) for title, note, draw in _PANELS if (uri := draw(curves)) is not None]
    zero = [title for title, _, draw in _PANELS if isinstance(draw, _Lines) and draw.zero(curves)]
    return drawn, zero
