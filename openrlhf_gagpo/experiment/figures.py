"""Curves of a comparison: the mean over seeds with a 95 % t band, one colour per algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np

from openrlhf_gagpo.credit.sets import Floats
from openrlhf_gagpo.experiment.results import AXES, Run, series
from openrlhf_gagpo.report.data import Points
from openrlhf_gagpo.report.figures import PALETTE, Panel, band, draw_points, new_axes, share_axis, show_legend, svg_uri
from openrlhf_gagpo.stats import mean_interval

__all__ = ["band_over_seeds", "panels"]

_GRID = 40
"""Points of a curve on an axis on which seeds have no positions in common."""

_CURVES = (
    ("Success in training", "Sampled training episodes of an iteration.", "rollout/success"),
    ("Episode length", "Environment steps of a training episode.", "rollout/episode_length"),
    ("Gradient norm", "Before clipping.", "policy/grad_norm"),
    ("Entropy", "Nats per response token.", "policy/entropy"),
    ("Interquartile range of advantages", "Over the steps of an iteration.", "credit/advantage_iqr"),
    ("Large advantages", "Share of steps with |A| > 1.", "credit/advantage_abs_gt1_share"),
    ("Smallest advantage", "Of an iteration.", "credit/advantage_min"),
    ("Largest advantage", "Of an iteration.", "credit/advantage_max"),
    ("State-group size", "Mean steps that share a state within a group.", "credit/state_group_size_mean"),
    ("Singleton states", "Share of steps whose state no other step of the group visited.", "credit/singleton_share"),
)


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Draw the curves of one setting for which runs have data."""
    found = [
        _panel(runs, "Held-out success", f"By {name}, sampled; bands are 95 % t intervals over seeds.", metric, name)
        for name in AXES
        for metric in ("eval/success",)
    ]
    found.append(_panel(runs, "Held-out success, greedy", "At temperature 0.", "eval/greedy_success", "iterations"))
    found += [_panel(runs, title, note, metric, "iterations") for title, note, metric in _CURVES]
    return [panel for panel in found if panel is not None]


def _panel(runs: Sequence[Run], title: str, note: str, metric: str, along: str) -> Panel | None:
    figure, axes = new_axes()
    axes.set_xlabel(along)
    drawn = False
    for color, algorithm in zip(cycle(PALETTE), dict.fromkeys(run.algorithm for run in runs), strict=False):
        curves = [series(run, metric, along) for run in runs if run.algorithm == algorithm]
        x, middle, low, high = band_over_seeds(curves, shared=along == "iterations")
        if len(x):
            drawn |= draw_points(axes, Points(x, middle), algorithm, color)
            band(axes, x, low, high, color)
    if not drawn:
        return None
    if metric.endswith("success") or metric.endswith("_share"):
        share_axis(axes)
    show_legend(axes)
    return Panel(title, note, svg_uri(figure))


def band_over_seeds(curves: Sequence[tuple[Floats, Floats]], shared: bool) -> tuple[Floats, Floats, Floats, Floats]:
    """Return positions, means and the ends of the 95 % t intervals over curves (one per seed, positions and values).

    Args:
        shared: whether the curves have positions in common; then each position counts the curves that have it.
            Otherwise the curves are interpolated up to the end of the shortest.

    Returns:
        Four arrays (P,); the ends are NaN where one curve only has a value.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return (np.zeros(0),) * 4
    if shared:
        at = np.unique(np.concatenate([x for x, _ in curves]))
        columns = [[y[x == place][0] for x, y in curves if (x == place).any()] for place in at]
    else:
        at = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), _GRID)
        columns = np.stack([np.interp(at, x, y) for x, y in curves], axis=1).tolist()
    found = [mean_interval(column) for column in columns]
    return (
        at,
        np.array([one.mean for one in found]),
        np.array([one.low for one in found]),
        np.array([one.high for one in found]),
    )
