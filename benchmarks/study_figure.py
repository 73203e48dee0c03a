"""The main figure of a comparison: success in training, and at the end of every algorithm, sampled and greedy.

    python benchmarks/study_figure.py results/study/a_slack/runs.jsonl.gz --curves gagpo gigpo grpo --out a_slack.png

Means over seeds with 95 % t intervals. Of several settings in the archive, ``--setting`` names one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from openrlhf_gagpo.experiment.aggregate import Comparison, aggregate
from openrlhf_gagpo.experiment.archive import read_archive
from openrlhf_gagpo.experiment.figures import band_over_seeds
from openrlhf_gagpo.experiment.results import series
from openrlhf_gagpo.report.figures import PALETTE

ENDS = (("final eval/success", "sampled", "o", PALETTE[0]), ("final eval/greedy_success", "greedy", "D", PALETTE[1]))


def draw(comparison: Comparison, setting: str, curves: list[str]) -> Figure:
    """Draw both panels."""
    names = list(dict.fromkeys(run.algorithm for run in comparison.runs if run.setting == setting))
    figure = Figure(figsize=(10, 1.1 + 0.3 * max(len(names), 8)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for color, name in zip(PALETTE, curves, strict=False):
        runs = [run for run in comparison.runs if (run.setting, run.algorithm) == (setting, name)]
        x, middle, low, high = band_over_seeds([series(run, "rollout/success", "iterations") for run in runs], True)
        left.plot(x, middle, color=color, label=f"{name} ({len(runs)} seeds)")
        left.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    left.set(xlabel="iteration", ylabel="success of training episodes", ylim=(0, 1))

    def sampled(name: str) -> float:
        found = comparison.summary(setting, name, ENDS[0][0])
        return found.t.mean if found is not None else 0.0

    names.sort(key=sampled)
    for offset, (metric, label, marker, color) in zip((0.13, -0.13), ENDS, strict=True):
        found = [comparison.summary(setting, name, metric) for name in names]
        kept = [(place, one.t) for place, one in enumerate(found) if one is not None]
        means = np.array([t.mean for _, t in kept])
        errors = np.array([[t.mean - t.low for _, t in kept], [t.high - t.mean for _, t in kept]])
        right.errorbar(
            means,
            [place + offset for place, _ in kept],
            xerr=errors,
            fmt=marker,
            color=color,
            label=label,
            markersize=4,
        )
    right.set_yticks(range(len(names)), names)
    right.set(xlabel="success on held-out tasks after training", xlim=(0, 1.02))
    for axes in (left, right):
        # Above the data, not on it.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("archive", type=Path, help="runs.jsonl.gz of gagpo compare")
    parser.add_argument("--setting", help="default: the first")
    parser.add_argument("--curves", nargs="+", required=True, help="algorithms in the left panel")
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    options = parser.parse_args()
    found = read_archive(options.archive)
    comparison = aggregate(found.runs, found.baseline, found.primary)
    draw(comparison, options.setting or found.runs[0].setting, options.curves).savefig(options.out, dpi=150)


if __name__ == "__main__":
    main()
