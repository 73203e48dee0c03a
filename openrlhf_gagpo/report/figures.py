"""What all figures share: colours, axes, lines, legends, and how a figure becomes part of a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from openrlhf_gagpo.report.data import Points

__all__ = [
    "INK",
    "PALETTE",
    "Panel",
    "band",
    "draw_points",
    "new_axes",
    "save",
    "share_axis",
    "show_legend",
    "svg_uri",
]

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


def show_legend(axes: Axes, least: int = 2) -> None:
    """Add a legend above the axes, where it hides nothing, if there are at least ``least`` series."""
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.get_figure(root=True)
    if figure is not None and len(labels) >= least:
        with matplotlib.rc_context(_STYLE):
            figure.legend(
                handles,
                labels,
                loc="outside upper center",
                ncols=min(4, len(labels)),
                handlelength=1.2,
                columnspacing=1.2,
            )
