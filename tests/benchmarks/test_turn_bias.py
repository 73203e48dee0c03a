"""The simulation of comparing gains per turn, and the table that the docs show of it."""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from typing import Any

import pytest

from support.paths import REPOSITORY

RESULT = REPOSITORY / "benchmarks/results/turn_bias.json"


@pytest.fixture(scope="module")
def script() -> Mapping[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        return runpy.run_path(str(REPOSITORY / "benchmarks/turn_bias.py"))


def test_only_the_unbiased_comparison_has_the_sign_of_the_gradient(script: Mapping[str, Any]) -> None:
    found = script["measure"](600, 1)
    unbiased, per_turn = found["A2TGPO, turn_norm unbiased"], found["A2TGPO, turn_norm turn_group"]
    for mean in script["MEANS"]:
        value, error = unbiased[str(mean)]
        assert abs(value) < 4 * error if mean == 0 else value * mean > 0
        assert per_turn[str(mean)][0] == pytest.approx(0, abs=1e-12)
    assert all(found["IGPO, ig_norm separate"][str(mean)][0] < 0 for mean in script["MEANS"])


def test_the_docs_show_the_recorded_numbers() -> None:
    page = (REPOSITORY / "docs/algorithms.md").read_text(encoding="utf-8")
    recorded = json.loads(RESULT.read_text(encoding="utf-8"))["estimates"]
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith(("| A2TGPO", "| IGPO"))}
    for label, row in recorded.items():
        shown = [float(cell.split("(")[0]) for cell in rows[label].split("|")[2:-1]]
        assert shown == [pytest.approx(value, abs=5e-4) for value, _ in row.values()]
