"""The memory of logits, at small size: bounds, equal numbers, and that the measure sees what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openrlhf_gagpo.training import token_scores
from support.benchmarks import load


def test_the_measure_counts_what_lives_at_once() -> None:
    def work() -> None:
        first = torch.zeros(1000)
        del first
        second, third = torch.zeros(500), torch.zeros(700)
        del second, third

    assert load("logits").peak_bytes(work) == 4 * 1200


def test_logits_take_no_more_than_they_may(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As small beside the logits as at real size.
    monkeypatch.setattr(token_scores, "_BLOCK", 2**13)
    out = tmp_path / "logits.json"
    sizes = "--words 4000 --hidden 4 --rows 4 --prompt 32 --response 32 --chunk 16"
    assert load("logits").main([*sizes.split(), "--out", str(out)]) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert max(report["largest_difference"].values()) < 1e-6
    ours = [line for line in report["passes"] if line["positions"] == "responses"]
    assert [(line["entropy"], line["chunk"]) for line in ours] == [(False, 0), (False, 16), (True, 0), (True, 16)]
    assert all(line["of_response_logits"] < (0.6 if line["chunk"] else 2.1) for line in ours)
    everywhere = [line for line in report["passes"] if line["positions"] == "all"]
    assert all(line["of_all_logits"] > 2.9 for line in everywhere)
    assert capsys.readouterr().out.count("response logits") == len(report["passes"])
