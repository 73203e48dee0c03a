"""The advantage benchmark runs at small size: its loops agree with the estimators, its report has every number."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from openrlhf_gagpo import credit
from support.paths import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "advantages.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("advantages_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_report(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    sizes = ["--rows", "600", "--sizes", "200", "400", "--repeats", "2", "--loop-repeats", "1"]
    assert benchmark.main([*sizes, "--no-torch", "--out", str(out)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [line["estimator"] for line in report["comparison"]] == [*benchmark.LOOPS, "all"]
    assert set(benchmark.LOOPS) <= set(credit.names())
    for line in report["comparison"]:
        assert line["largest_difference"] < 1e-9
        assert line["columns_ratio"] == pytest.approx(line["columns_s"] / line["estimator_s"])
        assert "torch_s" not in line
    assert [line["rows"] for line in report["growth"]] == [200, 400]
    assert report["machine"]["numpy"] == np.__version__
    assert "reinforce_baseline" in capsys.readouterr().out


def test_loops_over_tensors_agree(benchmark: ModuleType) -> None:
    pytest.importorskip("torch")
    columns = benchmark.make_columns(300, seed=1, group_size=4, max_steps=9, states=12, key_length=8)
    for line in benchmark.compare(columns, 1, 1, with_torch=True):
        assert line["largest_difference"] < 1e-9
        assert line["torch_s"] > 0


def test_disagreement_stops_the_benchmark(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = benchmark.make_columns(60, seed=1, group_size=4, max_steps=9, states=12, key_length=8)
    monkeypatch.setitem(benchmark.LOOPS, "grpo", lambda columns: [0.5] * 60)
    with pytest.raises(SystemExit, match="grpo differs from its loop over columns"):
        benchmark.compare(columns, 1, 1, with_torch=False)
