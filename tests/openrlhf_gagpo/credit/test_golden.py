"""Estimators against recorded advantages of an independent slow implementation, see ``credit.conformance``."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo import credit
from openrlhf_gagpo.credit import conformance
from openrlhf_gagpo.credit.conformance.cases import ATOL, RTOL, Case, cases
from support.step_batches import shuffled

FOLDER = Path(conformance.__file__).parent
RECORDED: list[dict[str, Any]] = [
    json.loads(line) for line in gzip.decompress((FOLDER / "cases.jsonl.gz").read_bytes()).splitlines()
]
CHECKS: dict[str, dict[str, Any]] = json.loads((FOLDER / "checks.json").read_text())
STEP_PARTS = {"gigpo.mean_norm.AS": "gigpo.mean_norm", "gigpo.mean_std_norm.AS": "gigpo.mean_std_norm"}
"""Recorded step part -> the whole; the key of the episode part ends in AE."""


def run(case: Case, order: np.ndarray) -> credit.CreditResult:
    estimator = credit.get(case.estimator)
    batch = credit.StepBatch.from_columns(**shuffled(dict(case.columns), order))
    return estimator(batch, estimator.options_cls(**case.given))


def orders(case: Case) -> list[np.ndarray]:
    count = len(case.expected)
    return [np.arange(count), np.random.default_rng(count).permutation(count)]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_matches_recorded_numbers_in_any_row_order(case: Case) -> None:
    for order in orders(case):
        found = getattr(run(case, order), case.quantity)
        np.testing.assert_allclose(found, case.expected[order], rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("part", STEP_PARTS)
@pytest.mark.parametrize("recording", RECORDED, ids=lambda recording: str(recording["case"]))
def test_step_part_of_gigpo(recording: dict[str, Any], part: str) -> None:
    named = {case.name: case for case in cases()}
    whole, episodes = (named[f"{STEP_PARTS[part]}{end}-{recording['case']}"] for end in ("", ".AE"))
    for order in orders(whole):
        # The recorded part has the weight 1.
        weight = whole.options()["step_coef"]
        found = (run(whole, order).advantage - run(episodes, order).advantage) / weight
        np.testing.assert_allclose(found, np.array(recording["expected"][part])[order], rtol=RTOL, atol=ATOL)


def test_all_cases_are_there() -> None:
    assert len(RECORDED) == 24
    recorded = set(RECORDED[0]["expected"])
    assert all(set(recording["expected"]) == recorded for recording in RECORDED)
    assert recorded - set(CHECKS) == set(STEP_PARTS)
    shuffled_with_penalty = [case for case in RECORDED if not case["ordered"] and case["params"]["penalty"]]
    ambiguous = [key for key, check in CHECKS.items() if check.get("ordered")]
    assert (len(shuffled_with_penalty), len(ambiguous)) == (9, 2)
    assert len(cases()) == 24 * len(recorded - set(STEP_PARTS)) - 9 * 2


def test_every_check_is_of_an_option_the_estimator_has() -> None:
    for case in cases():
        assert case.given.keys() <= case.options().keys()
