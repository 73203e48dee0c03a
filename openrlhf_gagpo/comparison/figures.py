"""The figures of the comparison page, in the style of the report's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, PercentFormatter

from openrlhf_gagpo.comparison.compute import Credit
from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.credit.sets import Floats, Ints
from openrlhf_gagpo.report.figures import INK, PALETTE, Panel, new_axes, show_legend, svg_uri

__all__ = ["pair_panels", "panels"]

_BINS = 40


def panels(source: Source, credits: Sequence[Credit]) -> list[Panel]:
    """Draw what the estimators give: how often, and where in an episode."""
    step = np.array([row["step"] for row in source.identity])
    return [
        Panel("Advantages", "Share of the kept steps per bin.", _histogram(credits)),
        Panel(
            "Advantage by step", "Mean over the kept steps at one position of their episodes.", _by_step(credits, step)
        ),
    ]


def pair_panels(credits: Sequence[Credit]) -> list[Panel]:
    """Draw the advantages of every pair of estimators against each other."""
    return [
        Panel(f"{first.estimator} and {second.estimator}", "One point per step that both keep.", _pair(first, second))
        for first, second in combinations(credits, 2)
    ]


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure, axes = new_axes()
    axes.xaxis.set_major_locator(AutoLocator())
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _kept(credit: Credit) -> Floats:
    kept: Floats = credit.values["advantage"][credit.keep]
    return kept


def _histogram(credits: Sequence[Credit]) -> str:
    figure, axes = _axes("advantage", "")
    everything = np.concatenate([_kept(credit) for credit in credits])
    edges = np.histogram_bin_edges(everything, _BINS) if len(everything) else np.array([0.0, 1.0])
    for color, credit in zip(cycle(PALETTE), credits, strict=False):
        kept = _kept(credit)
        shares = np.histogram(kept, edges)[0] / max(len(kept), 1)
        axes.stairs(shares, edges, color=color, label=credit.estimator, linewidth=1.4)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    show_legend(axes)
    return svg_uri(figure)


def _by_step(credits: Sequence[Credit], step: Ints) -> str:
    figure, axes = _axes("step", "mean advantage")
    axes.axhline(0.0, color=INK, linewidth=0.6)
    for color, credit in zip(cycle(PALETTE), credits, strict=False):
        positions, number = np.unique(step[credit.keep], return_inverse=True)
        if len(positions):
            mean = np.bincount(number, _kept(credit)) / np.bincount(number)
            axes.plot(positions, mean, color=color, label=credit.estimator, marker="o", markersize=3)
    show_legend(axes)
    return svg_uri(figure)


def _pair(first: Credit, second: Credit) -> str:
    figure, axes = _axes(first.estimator, second.estimator)
    both = first.keep & second.keep
    for line in (axes.axhline, axes.axvline):
        line(0.0, color=INK, linewidth=0.6)
    # As one picture, since thousands of drawn points make a slow page.
    x, y = (credit.values["advantage"][both] for credit in (first, second))
    axes.scatter(x, y, s=8, color=PALETTE[0], alpha=0.35, linewidths=0, rasterized=True)
    return svg_uri(figure)
