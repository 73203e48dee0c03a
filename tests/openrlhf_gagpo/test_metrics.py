from __future__ import annotations

import pytest

from openrlhf_gagpo import metrics
from support.paths import REPOSITORY
from support.report_runs import eval_row, training_row


def test_glossary_page_is_current() -> None:
    page = REPOSITORY / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == metrics.glossary_markdown(), (
        "run: python -m openrlhf_gagpo.metrics docs/metrics.md"
    )


def test_every_metric_is_described_and_in_a_known_group() -> None:
    assert {metric.group for metric in metrics.METRICS.values()} == set(metrics.GROUPS)
    assert all(metric.description.endswith(".") and metric.unit for metric in metrics.METRICS.values())


@pytest.mark.parametrize("name", ["policy/kl_ref", "eval/success", "eval/success/pick_two_obj", "iteration", "split"])
def test_documented(name: str) -> None:
    assert metrics.is_documented(name)


@pytest.mark.parametrize("name", ["policy/kl", "success", "eval/success/", "rollout/success/heat", ""])
def test_not_documented(name: str) -> None:
    assert not metrics.is_documented(name)


def test_undocumented_names_of_rows() -> None:
    assert metrics.undocumented([training_row(1), eval_row(1, 4), {"iteration": 3}]) == set()
    assert metrics.undocumented([{"policy/loss": 1.0, "policy/los": 1.0}]) == {"policy/los"}
