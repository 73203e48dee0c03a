"""The comparison as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from openrlhf_gagpo.comparison.agreement import Agreement
from openrlhf_gagpo.comparison.compute import Credit
from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.credit.statistics import ROUNDING
from openrlhf_gagpo.report.visible import visible

__all__ = ["agreement_table", "cell", "diagnostic_names", "diagnostics_table", "step_rows", "step_table"]

_WIDEST_KEY, _NARROWEST_KEY = 28, 8
_NUMBER = len("-1.234e-05")


def step_rows(source: Source, credits: Sequence[Credit], rows: int) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of the first ``rows`` steps: identity, reward, and the advantage under each estimator."""
    rewards = [reward for part in source.parts for reward in part.columns["reward"]]
    shown = list(zip(source.identity, rewards, strict=True))[:rows]
    cells = [
        [*map(str, identity.values()), cell(reward), *(_advantage(credit, row) for credit in credits)]
        for row, (identity, reward) in enumerate(shown)
    ]
    return [*source.identity[0], "reward", *(credit.estimator for credit in credits)], cells


def step_table(source: Source, credits: Sequence[Credit], rows: int) -> Table:
    """Build the table of ``step_rows``."""
    head, cells = step_rows(source, credits, rows)
    table = Table(title=f"advantages, {len(cells)} of {len(source)} steps")
    for name in head:
        text = name in ("group", "traj", "state")
        # Only keys give way on a narrow terminal, because a number that is cut off is a wrong one.
        table.add_column(
            name,
            justify="left" if text else "right",
            no_wrap=True,
            max_width=_WIDEST_KEY if text else None,
            min_width=_NARROWEST_KEY if text else max(_NUMBER, len(name)),
        )
    for row in cells:
        # As text, because keys may contain square brackets; and never obeyed by a terminal.
        table.add_row(*(Text(visible(text)) for text in row))
    return table


def agreement_table(found: Sequence[Agreement]) -> Table:
    """Build the table of all pairs."""
    table = Table(title="agreement")
    table.add_column("estimators")
    for name in ("steps", "both not 0", "same sign", "rank correlation"):
        table.add_column(name, justify="right")
    for pair in found:
        table.add_row(
            f"{pair.first}, {pair.second}",
            str(pair.steps),
            str(pair.signed),
            cell(pair.same_sign),
            cell(pair.rank_correlation),
        )
    return table


def diagnostics_table(credits: Sequence[Credit]) -> Table:
    """Build the table of the diagnostics, one column per estimator."""
    table = Table(title="diagnostics")
    table.add_column("metric")
    for credit in credits:
        table.add_column(credit.estimator, justify="right")
    for name in diagnostic_names(credits):
        table.add_row(name, *(cell(credit.diagnostics.get(name)) for credit in credits))
    return table


def diagnostic_names(credits: Sequence[Credit]) -> list[str]:
    """Return the diagnostics that any of the estimators has."""
    return list(dict.fromkeys(name for credit in credits for name in credit.diagnostics))


def cell(value: float | None) -> str:
    """Format a number; "-" if there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def _advantage(credit: Credit, row: int) -> str:
    value = float(credit.values["advantage"][row])
    return cell((0.0 if abs(value) < ROUNDING else value) if credit.keep[row] else None)
