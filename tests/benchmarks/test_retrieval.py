"""The benchmark of retrieval runs, and its plain postings find what the index finds."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from agent_envs.search_qa.retrieval.tantivy import TantivyRetriever
from support.paths import REPOSITORY

SCRIPT = runpy.run_path(str(REPOSITORY / "benchmarks" / "retrieval.py"))


def test_both_engines_are_measured_on_the_same_queries(tmp_path: Path) -> None:
    out = tmp_path / "retrieval.json"
    SCRIPT["main"](["--sizes", "300", "--queries", "20", "--folder", str(tmp_path), "--out", str(out)])
    SCRIPT["main"](["--once", "200", "--queries", "20", "--folder", str(tmp_path), "--out", str(out)])
    results = json.loads(out.read_text())
    small, large = results["sizes"]
    assert (small["passages"], large["passages"]) == (200, 300)
    assert small["engines"].keys() == {"index"}
    assert large["same_first_share"] == 1.0
    assert all(engine["found_share"] == 1.0 for engine in large["engines"].values())
    slope = (large["engines"]["index"]["disk_mib"] - small["engines"]["index"]["disk_mib"]) / 100
    assert results["extrapolated"]["disk_mib"] == pytest.approx(
        small["engines"]["index"]["disk_mib"] + (SCRIPT["FULL"] - 200) * slope
    )

    index = TantivyRetriever(tmp_path / "corpus_300.jsonl", tmp_path / "index_300")
    postings = SCRIPT["Postings"](index.corpus, tmp_path / "postings_300")
    asked = [query for query, _ in SCRIPT["queries"](300, 50)]
    assert len(set(asked)) == 50
    # The engine keeps lengths in one byte, so scores are close and not equal.
    for one, other in zip(index.search(asked, 3), postings.search(asked, 3), strict=True):
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], rel=0.05)
