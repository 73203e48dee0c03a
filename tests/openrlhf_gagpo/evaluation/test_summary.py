"""Evaluation episodes to numbers."""

from __future__ import annotations

import pytest

from openrlhf_gagpo.evaluation.summary import success_by_category
from support.report_runs import episode


def test_success_by_category_leaves_faulted_out() -> None:
    played = [episode(n, success=n < 3) for n in range(6)]
    played[1].end_reason = "env_fault"
    cool, heat = success_by_category(played)
    assert (cool.category, cool.successes, cool.episodes) == ("cool", 2, 3)
    assert (heat.category, heat.successes, heat.episodes) == ("heat", 0, 2)
    assert cool.share == pytest.approx(2 / 3)
    assert heat.interval[0] == 0.0
