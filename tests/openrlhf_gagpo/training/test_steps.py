"""The log of optimizer steps: what it counts of an iteration, and when it ends a run."""

from __future__ import annotations

import pytest

from openrlhf_gagpo.errors import DivergenceError
from openrlhf_gagpo.training.steps import StepLog


def _log(max_bad: int) -> StepLog:
    return StepLog("policy", "actor", max_bad)


def test_a_skipped_step_is_counted_and_its_sums_are_left_out() -> None:
    log = _log(5)
    log.end_step({"loss": 1.0, "gap_max": 3.0}, 2.0)
    log.end_step({"loss": float("nan"), "gap_max": 9.0}, None)
    log.end_step({"loss": 0.5, "gap_max": 2.0}, 4.0)
    assert log.totals == {"loss": 1.5, "gap_max": 3.0}
    assert log.count == 2
    assert log.metrics() == {"skipped_steps": 1.0, "grad_norm": 3.0}
    log.begin()
    assert log.metrics() == {"skipped_steps": 0.0}
    assert (log.totals, log.count) == ({}, 0)


def test_skipped_steps_in_a_row_end_the_run_also_over_iterations() -> None:
    log = _log(3)
    for norm in (None, None, 1.0, None):
        log.end_step({}, norm)
    log.begin()
    log.end_step({}, None)
    with pytest.raises(DivergenceError, match=r"policy was not finite in 3 optimizer .*--actor\.adam\.lr") as stop:
        log.end_step({}, None)
    assert "\n" not in str(stop.value)


def test_a_limit_of_0_never_ends_a_run() -> None:
    log = _log(0)
    for _ in range(100):
        log.end_step({}, None)
    assert log.metrics() == {"skipped_steps": 100.0}
