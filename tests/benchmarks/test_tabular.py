"""The tabular test bench: its exact success, its keys, and that it tells a good estimator from none."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from support.paths import REPOSITORY


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tabular_benchmark", REPOSITORY / "benchmarks/tabular.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shared", [False, True])
def test_exact_success_is_that_of_played_episodes(bench: ModuleType, shared: bool) -> None:
    regime = bench.Regime(30, 0.3)
    world = bench.build(bench.vault._generate(3, 2, 30, "train", 4), shared)
    logits = bench.start_logits(world, regime)
    assert bench.success(world, logits, regime.limit) == pytest.approx(0.3, abs=1e-6)
    rng = np.random.default_rng(0)
    batches = [bench.play(world, logits, np.arange(4), regime, rng)[0] for _ in range(40)]
    won = sum(batch.reward.sum() for batch in batches) / (40 * 4 * bench.GROUP_SIZE)
    assert won == pytest.approx(0.3, abs=0.04)


def test_keys_hold_what_the_regime_says(bench: ModuleType) -> None:
    def diagnostics(keys: str) -> dict[str, float]:
        regime = bench.Regime(20, 0.3, keys)
        world = bench.build(bench.vault._generate(3, 2, 20, "train", 3), False)
        batch, *_ = bench.play(world, bench.start_logits(world, regime), np.arange(3), regime, np.random.default_rng(1))
        return bench.METHODS["grpo"](batch).diagnostics

    state, history, distinct = (diagnostics(keys) for keys in ("state", "history", "distinct"))
    assert state["singleton_share"] < 0.3
    assert state["rejoined_share"] > 0.5
    assert history["singleton_share"] > 0.5
    assert (history["rejoined_share"], history["lone_start_share"]) == (0.0, 0.0)
    assert (distinct["singleton_share"], distinct["lone_start_share"]) == (1.0, 1.0)


def test_learning_needs_shared_states_or_an_episode_term(bench: ModuleType) -> None:
    def gain(method: str, keys: str) -> float:
        regime = bench.Regime(20, 0.2, keys)
        run = bench.train(regime, (bench.METHODS | bench.VARIANTS)[method], 0.3, 0, shared=False, layouts=8)
        return run[-1] - run[0]

    assert gain("gagpo", "state") > 0.5
    assert abs(gain("gagpo", "distinct")) < 1e-9
    assert gain("gagpo, broadcast_coef 1", "distinct") > 0.3


def test_a_report_keeps_the_cells_that_it_has(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "MARKS", (0, 1))
    monkeypatch.setattr(bench, "RATES", (0.1, 0.3))
    out = tmp_path / "report.json"
    words = ["--seeds", "2", "--layouts", "8", "--policies", "own", "--regimes", "no slack", "--out", str(out)]
    assert bench.main([*words, "--methods", "grpo"]) == 0
    first = json.loads(out.read_text(encoding="utf-8"))["cells"]["own, no slack"]["grpo"]
    assert bench.main([*words, "--methods", "grpo", "gagpo"]) == 0
    cells = json.loads(out.read_text(encoding="utf-8"))["cells"]["own, no slack"]
    assert cells["grpo"] == first
    assert len(cells["gagpo"]["ends"]) == 2
    assert cells["gagpo"]["rate"] in (0.1, 0.3)
    assert "own, no slack" in capsys.readouterr().out
