"""The script that measures WebShop: entries of the size asked for, figures of both checkouts, a straight line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from agent_envs.webshop.generator import generate
from support.paths import REPOSITORY


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import webshop

    yield webshop
    sys.modules.pop("webshop")


def test_padded_entries_have_the_size_asked_for_and_more_words(script: ModuleType, tmp_path: Path) -> None:
    items, *_ = generate(tmp_path, 300, seed=0)
    plain = json.loads(items.read_text(encoding="utf-8"))
    script.pad(items, 3900, seed=0)
    padded = json.loads(items.read_text(encoding="utf-8"))
    assert items.stat().st_size / 300 == pytest.approx(3900, rel=0.05)
    assert [entry["asin"] for entry in padded] == [entry["asin"] for entry in plain]
    words = {word for entry in padded for word in entry["full_description"].split()}
    assert len(words) > 3000


def test_it_writes_figures_of_each_size_and_their_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    arguments = ["--products", "150", "300", "--entry-bytes", "0", "2000", "--seconds", "0.05", "--out", str(out)]
    assert script.main([*arguments, "--against", str(REPOSITORY)]) == 0
    report = json.loads(out.read_text())
    assert [table["padded_to"] for table in report["tables"]] == [0, 2000]
    for table in report["tables"]:
        small, large = table["sizes"]
        slope = (large["cache_mib"] - small["cache_mib"]) / 150
        assert table["extrapolated"]["cache_mib"] == pytest.approx(large["cache_mib"] + slope * (1_180_000 - 300))
        assert large["ratios"]["cache_mib"] == 1.0
        assert 0 < large["own_mib"] < large["play_peak_mib"]
        assert large["pack_peak_mib"] < 500
    printed = capsys.readouterr().out
    assert "pack_peak_mib" in printed
    assert "(straight line)" in printed
    assert str(tmp_path) not in out.read_text()
