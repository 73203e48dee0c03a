"""A learning curve over several runs of one experiment, for a README or a paper."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from openrlhf_gagpo.report.data import Points, points
from openrlhf_gagpo.report.figures import PALETTE, band, draw_points, new_axes, save, share_axis
from openrlhf_gagpo.runfolder import RunFolder

__all__ = ["plot_curve"]


def plot_curve(
    run_dirs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    metric: str = "rollout/success",
    label: str = "",
    title: str = "",
) -> Path:
    """Draw the mean of ``metric`` over runs (seeds) with a band from the lowest to the highest run.

    ``out`` ends in ``.png`` or ``.svg``. ``eval/...`` metrics come from ``eval.jsonl``. At an iteration that only some
    runs reached, mean and band are over those. Raises ``ValueError`` without runs or when no run has the metric.
    """
    out = Path(out)
    if out.suffix not in (".png", ".svg"):
        raise ValueError(f"the picture must end in .png or .svg, not {out.name!r}.")
    if not run_dirs:
        raise ValueError("give at least one run folder to draw.")
    runs = [RunFolder.open(path) for path in run_dirs]
    found = [points(run.evals() if metric.startswith("eval/") else run.metrics(), metric) for run in runs]
    found = [series for series in found if not series.empty]
    if not found:
        raise ValueError(f"none of the runs has the metric {metric!r}.")

    x = np.unique(np.concatenate([series.x[np.isfinite(series.y)] for series in found]))
    values = np.full((len(found), len(x)), np.nan)
    for row, series in zip(values, found, strict=True):
        finite = np.isfinite(series.y)
        row[np.searchsorted(x, series.x[finite])] = series.y[finite]

    figure, axes = new_axes(6.4, 3.4)
    if len(found) > 1:
        band(axes, x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), PALETTE[0])
    label = label or metric
    draw_points(axes, Points(x, np.nanmean(values, axis=0)), label, PALETTE[0])
    axes.set_ylabel(label)
    if "success" in metric or metric.endswith("_share"):
        share_axis(axes)
    if title:
        axes.set_title(title, fontsize=10)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(figure, out, out.suffix[1:])
    return out
