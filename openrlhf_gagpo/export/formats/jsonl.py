"""The columns that credit is computed from, as plain JSON lines; docs/credit.md describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gagpo.export.registry import register

if TYPE_CHECKING:
    from openrlhf_gagpo.comparison.steps import Steps
    from openrlhf_gagpo.export.recording import Recording

__all__ = ["write_steps"]

_RECORDED: Mapping[str, str] = {
    "advantage": "advantage",
    "return": "return",
    "value": "value_proxy",
    "td_residual": "td_residual",
}
"""Name in a run's records -> name in a line, where ``value`` is a critic's."""


@register("jsonl", "columns that gagpo credit reads, with the recorded credit", suffix=".jsonl")
def write_steps(recording: Recording, path: Path) -> str:
    """Write one line per step. Reading it again gives exactly the same columns."""
    from openrlhf_gagpo.comparison.output import writing

    source = recording.steps()
    with writing(path, "--out") as file:
        for part in source.parts:
            for row in range(len(part)):
                file.write(json.dumps(_line(part, row)) + "\n")
    return f"{len(source)} steps"


def _line(steps: Steps, row: int) -> dict[str, object]:
    from openrlhf_gagpo.comparison.stepfile import COLUMNS

    columns = {name: _plain(steps.columns[name][row]) for name in COLUMNS if name in steps.columns}
    recorded = steps.recorded.get(row, {})
    credit = {name: recorded[known] for known, name in _RECORDED.items() if known in recorded}
    # The identity goes first, but names the state as the columns do, where whole numbers have become text.
    return {**steps.identity[row], **columns, **credit}


def _plain(value: Any) -> Any:
    """Return null for the NaN that stands in a column for a missing number."""
    return None if isinstance(value, float) and math.isnan(value) else value
