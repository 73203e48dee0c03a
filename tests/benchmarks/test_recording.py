"""Recorded runs: what is kept of them, and that it names no folder of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from openrlhf_gagpo.runfolder import RunFolder
from support.paths import REPOSITORY
from support.report_runs import eval_row, training_row

BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder.create(tmp_path / "seed0", {"values": {"run_dir": str(tmp_path / "seed0")}}, "", command=["x"])
    for iteration in range(1, 11):
        run.append_metrics(iteration, training_row(iteration))
    for successes, iteration in ((2, 0), (5, 10)):
        run.append_eval(iteration, eval_row(successes, 8), split="valid_seen")
    return run


def test_what_is_kept_is_a_run_without_paths(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from recording import keep

    (kept,) = keep([run.path], tmp_path / "out", str(tmp_path))
    again = RunFolder.open(kept)
    assert again.metrics() == run.metrics()
    assert again.evals() == run.evals()
    assert again.config()["values"]["run_dir"] == "runs/seed0"
    assert not any(str(tmp_path) in path.read_text() for path in kept.iterdir())
    sys.modules.pop("recording")


def test_the_alfworld_script_compares_first_and_last(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from alfworld_run import outcome

    found = outcome(run.path)
    rows = run.metrics()
    assert found["held_out_before"]["success"] == run.evals()[0]["eval/success"]
    assert found["held_out_after"]["success"] == run.evals()[1]["eval/success"]
    assert found["train_first_five"] == pytest.approx(sum(row["rollout/success"] for row in rows[:5]) / 5)
    assert found["train_last_five"] == pytest.approx(sum(row["rollout/success"] for row in rows[5:]) / 5)
    for name in ("alfworld_run", "recording"):
        sys.modules.pop(name)
