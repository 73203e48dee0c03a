"""Which runs the measures are taken of, that equal episodes are judged once, and what the summary correlates."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from openrlhf_gagpo.truth.referee import Verdict
from openrlhf_gagpo.truth.scores import score
from support.paths import REPOSITORY

_RECORDED = REPOSITORY / "tests/data/run_format1"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("credit_truth_benchmark", REPOSITORY / "benchmarks/credit_truth.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def cell(out: Path, algorithm: str, seed: int, *, won: float, state: str = "finished", rollouts: bool = True) -> None:
    """Make a cell of a comparison, whose success ends at ``won``."""
    folder = out / "cells" / "default" / algorithm / f"seed{seed}"
    shutil.copytree(_RECORDED, folder)
    if not rollouts:
        shutil.rmtree(folder / "rollouts")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    # Without the options of the recorded estimator.
    kept = {name: value for name, value in config["values"].items() if not name.startswith("algo.advantage.")}
    config["values"] = kept | {"algo.advantage.estimator": algorithm, "train.seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"state": state}))
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    rows[-1]["eval/success"] = won
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "cell.json").write_text(json.dumps({"setting": "default", "algorithm": algorithm, "seed": seed}))


def test_equal_episodes_are_judged_once(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recorded = tmp_path / "study", tmp_path / "recorded"
    for algorithm, won in (("gagpo", 0.5), ("grpo", 0.25), ("rloo", 0.0)):
        cell(out, algorithm, 0, won=won, rollouts=False)
        cell(recorded, algorithm, 0, won=0.0)
    cell(out, "gagpo", 1, won=1.0, state="running")
    (out / "cells" / "default" / "grpo" / "seed1").mkdir()
    judged: list[list[str]] = []

    def judge(path: Path, source: Any, credits: Any, *, gammas: Any, model: Any, budget: Any) -> Verdict:
        judged.append([credit.estimator for credit in credits])
        assert path.is_relative_to(recorded)
        n = len(source)
        # As many wrong signs as the place of the estimator says, and other numbers under another gamma.
        scores = [
            score(
                credit.estimator,
                gamma,
                np.arange(n) - place - 0.5 - 10 * (gamma != gammas[-1]),
                np.ones(n),
                np.zeros(n),
                np.ones(n, dtype=bool),
                np.ones(n, dtype=np.int64),
                scaled=True,
            )
            for gamma in gammas
            for place, credit in enumerate(credits)
        ]
        return Verdict([], scores, "")

    monkeypatch.setattr(bench, "judge", judge)
    output = tmp_path / "lines.json"
    bench.main([str(out), "--recorded", str(recorded), "--output", str(output)])
    assert judged == [["gagpo", "grpo", "rloo"]]
    lines = {line["algorithm"]: line for line in json.loads(output.read_text())}
    steps = lines["grpo"]["steps"]
    assert {name: (line["rise"], line["gamma"]) for name, line in lines.items()} == {
        "gagpo": (0.5, 0.95),
        "grpo": (0.25, 1.0),
        "rloo": (0.0, 1.0),
    }
    wrong = {name: round(steps * (1 - line["sign_accuracy"])) for name, line in lines.items()}
    assert wrong == {"gagpo": 11, "grpo": 2, "rloo": 3}
    printed = capsys.readouterr().out
    assert "default: gagpo: sign_accuracy " in printed
    assert "default: sign_accuracy and rise: -0.50 over 3 algorithms, -0.50 [nan, nan] within 1 seeds" in printed


def test_what_cannot_be_correlated_is_not_a_number(bench: ModuleType) -> None:
    rows = [{"cosine": x, "rise": y} for x, y in ((0.1, 0.1), (0.2, 0.4), (0.3, 0.9), (None, 5.0))]
    assert bench.correlation(rows, "cosine", "rise") == pytest.approx(1)
    assert math.isnan(bench.correlation(rows[:2], "cosine", "rise"))
    assert math.isnan(bench.correlation([{"cosine": 0.5, "rise": y} for y in range(4)], "cosine", "rise"))


def test_runs_without_recorded_episodes_are_refused(bench: ModuleType, tmp_path: Path) -> None:
    cell(tmp_path, "gagpo", 0, won=0.5, rollouts=False)
    with pytest.raises(bench.GagpoError, match="has no recorded episodes"):
        bench.main([str(tmp_path)])


def test_the_evaluation_of_a_shared_start_is_the_first(bench: ModuleType, tmp_path: Path) -> None:
    cell(tmp_path, "gagpo", 0, won=0.5)
    folder = tmp_path / "cells" / "default" / "gagpo" / "seed0"
    rows = [row for row in (folder / "eval.jsonl").read_text().splitlines() if json.loads(row)["iteration"] > 0]
    (folder / "eval.jsonl").write_text("".join(f"{row}\n" for row in rows))
    start = tmp_path / "starts" / "default" / "seed0"
    for number, success in enumerate((0.0, 0.125)):
        check = shutil.copytree(_RECORDED, start / f"check{number}")
        row = {"iteration": 0, "eval/success": success}
        (check / "eval.jsonl").write_text(json.dumps(row) + "\n")
    (start / "start.json").write_text(json.dumps({"tries": [{"seed": 0}, {"seed": 1000}]}))

    for given in (tmp_path, folder):
        (run,) = bench.finished_runs([given])
        assert [row["eval/success"] for row in run.evals] == [0.125, *(json.loads(row)["eval/success"] for row in rows)]
