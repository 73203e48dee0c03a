"""The files of a comparison: ``results.csv``, ``results.md`` and ``report.html``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_gagpo.experiment.aggregate import Comparison, Difference, Summary
from openrlhf_gagpo.experiment.figures import panels
from openrlhf_gagpo.report.template import environment
from openrlhf_gagpo.stats import Estimate

__all__ = ["write_results"]


def write_results(out: Path, comparison: Comparison, tuning: Mapping[str, Any], failed: Sequence[str]) -> Path:
    """Write all files into ``out`` and return the path of the page.

    Args:
        tuning: content of ``tuning.json``; empty without a tuning stage.
        failed: cells without a result.
    """
    (out / "results.csv").write_text(_csv(comparison), encoding="utf-8")
    (out / "results.md").write_text(_markdown(comparison, tuning, failed), encoding="utf-8")
    page = out / "report.html"
    page.write_text(_page(comparison, tuning, failed), encoding="utf-8")
    return page


def _csv(comparison: Comparison) -> str:
    """Return one line per run and number."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["setting", "algorithm", "seed", "commit", "metric", "value"])
    for run in comparison.runs:
        key = run.setting, run.algorithm, run.seed
        for metric, value in comparison.numbers[key].items():
            writer.writerow([*key, run.commit, metric, repr(value)])
    return stream.getvalue()


_PAIRED = (
    "Paired by seed, since runs of one seed play the same tasks from the same start. p is of a paired t test, "
    "corrected by Holm's method over the algorithms of a number. Seeds needed are those with which a difference of "
    "the size found would be found with 80 % power."
)

_Table = tuple[str, str, list[str], list[list[str]]]
"""Title, a sentence on it, head, rows."""


def _tables(comparison: Comparison, tuning: Mapping[str, Any]) -> list[_Table]:
    tables: list[_Table] = []
    settings = dict.fromkeys(item.setting for item in comparison.summaries)
    for setting in settings:
        head = ["algorithm", "number", "seeds", "mean", "sd", "95 % t interval", "95 % bootstrap interval"]
        rows = [
            _summary_row(item)
            for metric in comparison.metrics
            for item in comparison.summaries
            if (item.setting, item.metric) == (setting, metric)
        ]
        differences = [_difference_row(item) for item in comparison.differences if item.setting == setting]
        if differences:
            tables.append(
                (
                    f"{setting}: differences to {comparison.baseline}",
                    _PAIRED,
                    ["number", "algorithm", "pairs", "difference", "sd", "95 % t interval", "95 % bootstrap interval"]
                    + ["p", "p (Holm)", "seeds needed"],
                    differences,
                )
            )
        tables.append((f"{setting}: all numbers", "Over seeds.", head, rows))
    if tuning:
        tables.append(_tuning_table(tuning))
    return tables


def _tuning_table(tuning: Mapping[str, Any]) -> _Table:
    choices = tuning["choices"]
    values = list(choices[0]["means"]) if choices else []
    rows = [
        [row["setting"], row["algorithm"], row["flag"], *(_text(row["means"][v]) for v in values), str(row["chosen"])]
        for row in choices
    ]
    seeds = ", ".join(map(str, choices[0]["seeds"])) if choices else ""
    return (
        "Tuning",
        f"Mean of the last {tuning['primary']} on the seeds {seeds}, which no other table uses.",
        ["setting", "algorithm", "flag", *values, "chosen"],
        rows,
    )


def _summary_row(item: Summary) -> list[str]:
    spread = [_text(item.spread), _interval(item.t), _interval(item.bootstrap)]
    return [item.algorithm, item.metric, str(len(item.by_seed)), _text(item.t.mean), *spread]


def _difference_row(item: Difference) -> list[str]:
    spread = [_text(item.spread), _interval(item.t), _interval(item.bootstrap)]
    needed = "no number" if item.pairs is None and item.t.count > 1 else "" if item.pairs is None else str(item.pairs)
    middle = [str(item.t.count), _text(item.t.mean), *spread]
    return [item.metric, item.algorithm, *middle, _text(item.p_value), _text(item.corrected), needed]


def _markdown(comparison: Comparison, tuning: Mapping[str, Any], failed: Sequence[str]) -> str:
    lines = [f"# Comparison by {comparison.primary}", "", *(f"* {note}" for note in _notes(comparison, failed))]
    for title, note, head, rows in _tables(comparison, tuning):
        lines += ["", f"## {title}", "", note, "", _line(head), _line(["---"] * len(head)), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _page(comparison: Comparison, tuning: Mapping[str, Any], failed: Sequence[str]) -> str:
    settings = dict.fromkeys(run.setting for run in comparison.runs)
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            title=f"Comparison by {comparison.primary}",
            runs=len(comparison.runs),
            algorithms=list(dict.fromkeys(run.algorithm for run in comparison.runs)),
            notes=_notes(comparison, failed),
            tables=_tables(comparison, tuning),
            figures=[
                (setting, panels([run for run in comparison.runs if run.setting == setting])) for setting in settings
            ],
        )
    )


def _notes(comparison: Comparison, failed: Sequence[str]) -> list[str]:
    return [*comparison.notes, *([f"Without a result: {', '.join(failed)}."] if failed else [])]


def _interval(found: Estimate) -> str:
    return f"{_text(found.low)} to {_text(found.high)}" if math.isfinite(found.low) else "none (one seed)"


def _text(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"
