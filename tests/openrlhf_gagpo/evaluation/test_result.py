"""Finished samples to numbers, rows and paired differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from openrlhf_gagpo.errors import ConfigError, EvaluationError
from openrlhf_gagpo.evaluation.prices import Price, read_price
from openrlhf_gagpo.evaluation.result import differences, numbers
from openrlhf_gagpo.evaluation.rows import difference_lines, table
from openrlhf_gagpo.evaluation.samples import Sample
from openrlhf_gagpo.evaluation.store import EvaluationFolder
from openrlhf_gagpo.rollout.types import Usage
from openrlhf_gagpo.stats import paired_test, wilson_interval
from support.report_runs import episode


def sample(task: str, number: int, *outcomes: bool, steps: int = 4, fault: str = "") -> Sample:
    """A sample with one trial per outcome."""
    trials = []
    for trial, success in enumerate(outcomes):
        played = episode(number, success=success, steps=steps)
        played.task, played.trajectory, played.category = task, f"{task}t{number}.{trial}", ""
        played.score = float(success)
        trials.append(played)
    if fault:
        trials[-1].end_reason = fault  # type: ignore[assignment]
    return Sample(trials, Usage(3, 100, 20, 40), 1.5)


def played(outcomes: dict[str, Sequence[bool]]) -> list[Sample]:
    return [sample(task, number, won) for task, all_won in outcomes.items() for number, won in enumerate(all_won)]


def test_means_and_intervals_are_over_tasks() -> None:
    found = numbers(played({"a": [True, True], "b": [True, False], "c": [False, False], "d": [False, False]}))
    assert found["success"] == dict(zip(("mean", "low", "high"), (0.375, *wilson_interval(2, 4)), strict=True))
    assert (found["tasks"], found["samples"]) == (4, 8)
    assert found["by_task"]["b"] == {
        "samples": 2, "successes": 1, "success": 0.5, "score": 0.5, "return": 0.5, "length": 4.0,
    }  # fmt: skip
    assert found["length"]["mean"] == 4.0
    # Of four steps, one was malformed and one not possible.
    assert (found["format_invalid_share"], found["inadmissible_share"]) == (0.25, 0.25)
    assert found["success_by_trial"] == []
    json.dumps(found, allow_nan=False)


def test_a_task_with_more_samples_does_not_weigh_more() -> None:
    found = numbers(played({"a": [True] * 9, "b": [False]}))
    assert found["success"]["mean"] == 0.5


def test_pass_at_k_averages_over_tasks() -> None:
    found = numbers(played({"a": [True, False, False], "b": [False, False, False]}))
    assert {k: entry["mean"] for k, entry in found["pass_at"].items()} == pytest.approx(
        {"1": 1 / 6, "2": 1 / 3, "3": 0.5}
    )


def test_faulted_samples_count_in_nothing_but_the_cost() -> None:
    samples = [
        sample("a", 0, True),
        sample("a", 1, False, fault="env_fault"),
        sample("b", 0, False, fault="policy_fault"),
    ]
    found = numbers(samples, Price("USD", 1.0, 2.0, 0.5))
    assert found["faulted"] == {"environment": 1, "policy": 1}
    assert (found["tasks"], found["success"]["mean"], found["requests"]) == (1, 1.0, 9)
    assert found["cost"]["total"] == pytest.approx(3 * (60 * 1.0 + 40 * 0.5 + 20 * 2.0) / 1e6)


def test_trials_count_by_the_last_and_are_shown_by_number() -> None:
    samples = [sample("a", 0, True), sample("b", 0, False, True), sample("c", 0, False, False, False)]
    found = numbers(samples)
    assert found["success_by_trial"] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert found["success"]["mean"] == pytest.approx(2 / 3)
    # The length is the price of the success: that of all trials together.
    assert [entry["length"] for entry in found["by_task"].values()] == [4.0, 8.0, 12.0]


def test_nothing_played_is_no_number() -> None:
    found = numbers([])
    assert found["success"] == {"mean": None, "low": 0.0, "high": 1.0}
    assert found["pass_at"] == {}
    json.dumps(found, allow_nan=False)
    assert "| - |" in table([{"label": "m", "numbers": found, "settings": SETTINGS}])


SETTINGS = {
    "environment": "vault", "environment_sha256": "e" * 64, "split": "valid", "agent": "a", "policy": "p",
    "samples": 1, "temperature": 0, "prompt_sha256": "f" * 64,
}  # fmt: skip


def test_paired_differences_are_over_common_tasks() -> None:
    first = numbers(played({"a": [True, True], "b": [True, False], "c": [False, True], "x": [True, True]}))
    second = numbers(played({"c": [False, False], "b": [False, False], "a": [True, False], "y": [True]}))
    found = differences(SETTINGS, first, {**SETTINGS, "temperature": 1.0, "agent": "b"}, second)
    expected = paired_test([1.0, 0.5, 0.5], [0.5, 0.0, 0.0])
    assert found["tasks"] == 3
    assert found["settings"] == ["agent", "temperature"]
    assert found["success"]["mean"] == expected.difference.mean == 0.5
    lines = difference_lines(found)
    assert lines[1].startswith("  success +0.500 [+0.500, +0.500]")
    assert lines[-1] == "  the two differ in agent, temperature"
    assert difference_lines(differences(SETTINGS, first, SETTINGS, first))[1].startswith("  success +0.000")


@pytest.mark.parametrize("name", ["environment", "environment_sha256", "split"])
def test_different_tasks_are_not_compared(name: str) -> None:
    found = numbers(played({"a": [True]}))
    with pytest.raises(EvaluationError, match=name):
        differences(SETTINGS, found, {**SETTINGS, name: "other"}, found)


def test_no_common_task() -> None:
    with pytest.raises(EvaluationError, match="no task in common"):
        differences(SETTINGS, numbers(played({"a": [True]})), SETTINGS, numbers(played({"b": [True]})))


def test_a_model_may_be_called_anything() -> None:
    row = table([{"label": "a|b", "numbers": numbers(played({"a": [True]})), "settings": SETTINGS}]).splitlines()[2]
    assert row.startswith("| a\\|b | a | vault valid, 1 x 1 | greedy | 1.000 [0.207, 1.000] |")


def test_samples_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "out")
    samples = [sample("a", 0, False, True), sample("b", 1, False, fault="policy_fault")]
    with folder.claim({}, {}, "prompt"):
        for one in samples:
            folder.append(one)
    assert list(folder.samples().values()) == samples


@pytest.mark.parametrize(
    "text",
    ["", "models: {}", "models: {m: {input: 1}}", "models: {m: {input: a, output: 2}}", "[1]", "models: [", "a: {m: 1}",
     "models: {m: {input: -1, output: 2}}"],
)  # fmt: skip
def test_prices_that_cannot_be_used(text: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="--prices"):
        read_price(file, "m")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_price(tmp_path / "none.yaml", "m")


def test_cached_tokens_may_have_a_price_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("models: {m: {input: 2, output: 8}, n: {input: 2, output: 8, cached_input: 1}}")
    usage = Usage(1, 1_000_000, 1_000_000, 500_000)
    assert read_price(file, "m").of(usage) == pytest.approx(10.0)
    assert read_price(file, "n").of(usage) == pytest.approx(9.5)
