"""A learning curve over several runs of one experiment, for a README or a paper."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from openrlhf_gagpo.report.data import Points, points
from openrlhf_gagpo.report.figures import PALETTE, band, draw_points, new_axes, save, share_axis, show_legend
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import mean_interval

__all__ = ["plot_curve"]


def plot_curve(
    run_dirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    metrics: Mapping[str, str] = MappingProxyType({"success": "rollout/success"}),
    title: str = "",
) -> Path:
    """Draw the mean of ``metrics`` (label -> name) over runs (seeds), each with the band of its 95 % t interval.

    ``out`` ends in ``.png`` or ``.svg``. ``eval/...`` metrics come from ``eval.jsonl``. At an iteration that only some
    runs reached, mean and band cover those runs. Raises ``ValueError`` without runs, for no or too many metrics, or if
    no run has one of the metrics.
    """
    out = Path(out)
    if out.suffix not in (".png", ".svg"):
        raise ValueError(f"the picture must end in .png or .svg, not {out.name!r}.")
    if not 0 < len(metrics) <= len(PALETTE):
        raise ValueError(f"one picture shows 1 to {len(PALETTE)} metrics, not {len(metrics)}.")
    if not run_dirs:
        raise ValueError("give at least one run folder to draw.")
    runs = [RunFolder.open(path) for path in run_dirs]
    figure, axes = new_axes(6.4, 3.4)
    for color, (label, metric) in zip(PALETTE, metrics.items(), strict=False):
        x, values = _over_runs(runs, metric)
        if len(values) > 1:
            intervals = [mean_interval(column[np.isfinite(column)].tolist()) for column in values.T]
            band(axes, x, [interval.low for interval in intervals], [interval.high for interval in intervals], color)
        draw_points(axes, Points(x, np.nanmean(values, axis=0)), label, color)
    if len(metrics) == 1:
        axes.set_ylabel(label)
    else:
        show_legend(axes)
    if all("success" in metric or metric.endswith("_share") for metric in metrics.values()):
        share_axis(axes)
    if title:
        axes.set_title(title, fontsize=10)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(figure, out, out.suffix[1:])
    return out


def _over_runs(runs: Sequence[RunFolder], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the iterations, and a row of values per run that has the metric; NaN where a run has no value."""
    found = [points(run.evals() if metric.startswith("eval/") else run.metrics(), metric) for run in runs]
    found = [series for series in found if not series.empty]
    if not found:
        raise ValueError(f"none of the runs has the metric {metric!r}.")
    x = np.unique(np.concatenate([series.x[np.isfinite(series.y)] for series in found]))
    values = np.full((len(found), len(x)), np.nan)
    for row, series in zip(values, found, strict=True):
        finite = np.isfinite(series.y)
        row[np.searchsorted(x, series.x[finite])] = series.y[finite]
    return x, values
