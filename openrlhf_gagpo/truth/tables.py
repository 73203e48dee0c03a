"""The distance of every estimator to the truth, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from openrlhf_gagpo.comparison.tables import cell
from openrlhf_gagpo.truth.scores import BUCKETS, Score

__all__ = ["error_rows", "score_rows", "truth_tables"]


def score_rows(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of the table with one line per estimator and discount factor."""
    head = ["estimator", "gamma", "steps", "certain sign", "sign accuracy", "correlation", "rank correlation", "cosine"]
    rows = [
        [
            found.name,
            f"{found.gamma:g}",
            str(found.steps),
            str(found.signed),
            *map(cell, (found.sign_accuracy, found.pearson, found.spearman, found.cosine)),
        ]
        for found in scores
    ]
    return head, rows


def error_rows(scores: Sequence[Score]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of bias and variance by the size of the state group."""
    head = ["estimator", "gamma", *(f"{what}, {name}" for what in ("bias", "variance") for name in BUCKETS)]
    rows = [
        [
            found.name,
            f"{found.gamma:g}",
            *(cell(found.errors[name].bias) for name in BUCKETS),
            *(cell(found.errors[name].variance) for name in BUCKETS),
        ]
        for found in scores
    ]
    return head, rows


def truth_tables(scores: Sequence[Score]) -> list[Table]:
    """Build both tables for the terminal."""
    titles = ("truth", "differences to the truth, by steps in the same state of a group")
    return [
        _table(title, *content) for title, content in zip(titles, (score_rows(scores), error_rows(scores)), strict=True)
    ]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for name in head:
        table.add_column(name, justify="left" if name == head[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table
