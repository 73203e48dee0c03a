"""The local backend on a CUDA device, with torch and transformers alone.

`python -m pytest tests/gpu` is all that a machine with a GPU has to run. It writes what it measures to
benchmarks/results/gpu_<device>.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from openrlhf_gagpo.losses import cispo, gspo, ppo
from support import local_checks
from support.benchmarks import load
from support.paths import REPOSITORY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("loss", [ppo.NAME, gspo.NAME, cispo.NAME])
def test_updates_are_those_of_the_cpu(tmp_path: Path, dtype: str, loss: str) -> None:
    here, there = (local_checks.updated(tmp_path, *kind, loss) for kind in (("cpu", "fp32"), ("cuda", dtype)))
    close = 1e-4 if dtype == "fp32" else 0.05
    for name in ("before", "after"):
        np.testing.assert_allclose(here[name], there[name], atol=close)
    for first, second in zip(here["metrics"], there["metrics"], strict=True):
        for name in ("policy/loss", "policy/entropy", "policy/kl_ref"):
            assert first[name] == pytest.approx(second[name], abs=close), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_chunks_of_logits_change_nothing(tmp_path: Path, dtype: str) -> None:
    whole, chunks = (
        local_checks.updated(tmp_path / str(chunk), "cuda", dtype, ppo.NAME, "--train.logit_chunk", str(chunk))
        for chunk in (0, 7)
    )
    np.testing.assert_allclose(whole["after"], chunks["after"], atol=1e-5 if dtype == "fp32" else 0.02)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_resumed_backend_reaches_the_same_parameters(tmp_path: Path, dtype: str) -> None:
    straight, resumed = local_checks.resumed(tmp_path, "cuda", dtype)
    for name, value in straight.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5, msg=name)


def _cuda_peak(work: Callable[[], object]) -> int:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_close(tmp_path: Path, dtype: str, checkpointing: bool) -> None:
    bench = load("gpu_local")
    sizes = bench.Sizes(32_000, 512, 1536, 8, 8, 2)
    work = bench.Work(episodes=8, prompt=384, answer=128, rows=16, micro=8)
    extra = ("--actor.gradient_checkpointing_enable",) if checkpointing else ()
    found = local_checks.estimate_and_peak(tmp_path, "cuda", dtype, sizes, work, _cuda_peak, *extra)
    guess, peak = found["update"]
    assert guess == pytest.approx(peak, rel=0.2)


def test_speed_of_half_a_billion_parameters() -> None:
    bench, folder = load("gpu_local"), REPOSITORY / "benchmarks" / "results"
    assert bench.main(["--out", str(folder)]) == 0
    newest = max(folder.glob("gpu_*.json"), key=lambda file: file.stat().st_mtime)
    report = json.loads(newest.read_text(encoding="utf-8"))
    assert report["device"] == torch.cuda.get_device_name()
    for result in report["results"]:
        assert result["loss_is_finite"]
        assert 0.4e9 < result["parameters"] < 0.6e9
        assert result["update_estimated_bytes"] == pytest.approx(result["update_peak_bytes"], rel=0.2)
