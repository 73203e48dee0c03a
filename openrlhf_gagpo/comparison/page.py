"""The comparison as one HTML file without external resources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from openrlhf_gagpo.comparison.agreement import Agreement
from openrlhf_gagpo.comparison.compute import Credit
from openrlhf_gagpo.comparison.figures import pair_panels, panels
from openrlhf_gagpo.comparison.output import writing
from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.comparison.tables import cell, diagnostic_names, step_rows
from openrlhf_gagpo.report.template import environment

__all__ = ["Table", "write_page"]


Table = tuple[str, str, Sequence[str], Sequence[Sequence[str]]]
"""Title, sentence below it, head and rows of a further table."""


def write_page(
    path: Path,
    source: Source,
    credits: Sequence[Credit],
    found: Sequence[Agreement],
    rows: int,
    note: str,
    further: Sequence[Table] = (),
) -> None:
    """Write the page.

    Args:
        rows: steps in its table.
        note: a sentence below the title, or "".
        further: tables shown before the agreement.

    Raises:
        ConfigError: the file cannot be written.
    """
    made = environment()
    made.filters["cell"] = cell
    head, cells = step_rows(source, credits, rows)
    html = made.get_template("credit.html.j2").render(
        title=source.title,
        note=note,
        steps=len(source),
        credits=credits,
        options=[(credit.estimator, _options(credit)) for credit in credits],
        further=further,
        agreements=found,
        diagnostics=diagnostic_names(credits),
        panels=panels(source, credits),
        pairs=pair_panels(credits),
        head=head,
        rows=cells,
    )
    with writing(path, "--html") as file:
        file.write(html)


def _options(credit: Credit) -> str:
    return ", ".join(f"{item.name} {getattr(credit.options, item.name)}" for item in fields(credit.options))
