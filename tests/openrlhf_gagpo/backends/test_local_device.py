"""What tests/gpu checks at real size on a GPU, small and on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openrlhf_gagpo.losses import gspo, ppo
from support import local_checks
from support.benchmarks import load


@pytest.mark.parametrize("loss", [ppo.NAME, gspo.NAME])
def test_both_number_formats_train_alike(tmp_path: Path, loss: str) -> None:
    full, half = (local_checks.updated(tmp_path, "cpu", dtype, loss) for dtype in ("fp32", "bf16"))
    np.testing.assert_allclose(full["before"], half["before"], atol=0.03)
    assert not np.allclose(full["before"], full["after"], atol=1e-3)
    for first, second in zip(full["metrics"], half["metrics"], strict=True):
        assert first["policy/entropy"] == pytest.approx(second["policy/entropy"], abs=0.02)


def test_a_resumed_backend_reaches_the_same_parameters(tmp_path: Path) -> None:
    straight, resumed = local_checks.resumed(tmp_path, "cpu", "fp32")
    for name, value in straight.items():
        assert torch.equal(resumed[name], value), name


def test_speed_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = load("gpu_local")
    assert bench.main(["--device", "cpu", "--small", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu_cpu.json").read_text(encoding="utf-8"))
    assert [result["dtype"] for result in report["results"]] == ["bf16", "fp32"]
    for result in report["results"]:
        assert result["loss_is_finite"]
        for phase in ("rollout", "update"):
            assert result[phase]["tokens_per_second"] > 0
            assert result[phase]["of_matrix_product"] > 0
            assert result[phase]["of_maker"] is None
    assert str(tmp_path / "gpu_cpu.json") in capsys.readouterr().out
