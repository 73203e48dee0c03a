"""Evaluation episodes to numbers."""

from __future__ import annotations

import pytest

from openrlhf_gagpo.evaluation.summary import greedy_metrics, success_by_category
from support.report_runs import episode


def test_success_by_category_leaves_faulted_out() -> None:
    played = [episode(n, success=n < 3) for n in range(6)]
    played[1].end_reason = "env_fault"
    for number, one in enumerate(played):
        one.task = f"task-{number}"
    cool, heat = success_by_category(played)
    assert (cool.category, cool.successes, cool.episodes, cool.tasks) == ("cool", 2, 3, 3)
    assert (heat.category, heat.successes, heat.episodes, heat.tasks) == ("heat", 0, 2, 2)
    assert cool.share == pytest.approx(2 / 3)
    assert heat.interval[0] == 0.0


def test_repeated_episodes_do_not_narrow_the_interval_of_a_category() -> None:
    once = [episode(0, success=True), episode(2, success=False)]
    for number, played in enumerate(once):
        played.task, played.category = f"task-{number}", "cool"
    (one,), (eight,) = success_by_category(once), success_by_category(once * 8)
    assert (eight.episodes, eight.tasks) == (16, 2)
    assert eight.interval == one.interval


def test_greedy_episodes_are_counted_by_category_too() -> None:
    played = [episode(0, success=True), episode(1, success=False)]
    played[0].category, played[1].category = "heat", "cool"
    metrics = greedy_metrics(played)
    assert (metrics["eval/greedy_success/heat"], metrics["eval/greedy_success/cool"]) == (1.0, 0.0)
    assert not any(name.startswith("eval/success") for name in metrics)
