"""An index that is made in blocks: the same whatever their size, and in little memory."""

from __future__ import annotations

import io
import math
import random
import tempfile
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from agent_envs.webshop.indexing import IndexBuilder
from agent_envs.webshop.search import Index

WORDS = [f"{first}{second}" for first in "bdfgk" for second in ("am", "el", "irk", "ox", "ut", "ylp", "azz", "ond")]


def built(folder: Path, documents: list[str], rank: np.ndarray, block: int) -> dict[str, np.ndarray]:
    folder.mkdir()
    builder = IndexBuilder(folder, io.BytesIO(), block)
    for document in documents:
        builder.add(document)
    arrays = builder.finish(rank)
    return arrays | {path.stem: np.load(path) for path in folder.glob("*.npy")}


@pytest.fixture
def documents() -> list[str]:
    rng = random.Random(0)
    drawn = [rng.choices(WORDS, weights=range(1, len(WORDS) + 1), k=rng.choice((1, 5, 20, 60, 300))) for _ in range(60)]
    return ["", *map(" ".join, drawn), "the", "one that nobody else has"]


@pytest.mark.parametrize("block", [1, 7, 100, 2000])
def test_blocks_of_any_size_give_the_same_index(tmp_path: Path, documents: list[str], block: int) -> None:
    rank = np.random.default_rng(0).permutation(len(documents))
    whole = built(tmp_path / "whole", documents, rank, 1 << 20)
    parts = built(tmp_path / "parts", documents, rank, block)
    for name in ("term_ids", "term_offsets", "posting_offsets", "posting_ranks", "indexed"):
        assert np.array_equal(whole[name], parts[name]), name
    assert np.array_equal(whole["saturation"][whole["posting_codes"]], parts["saturation"][parts["posting_codes"]])
    for query in ("bam", "dox kond", "nobody", "nowhere", " ".join(WORDS)):
        found = [
            Index(arrays, tmp_path / name).search(query, 20) for name, arrays in (("whole", whole), ("parts", parts))
        ]
        assert found[0] == found[1]


def test_the_order_is_that_of_the_formula(tmp_path: Path, documents: list[str]) -> None:
    """Of documents up to 39 words, whose lengths are stored exactly."""
    short = [document for document in documents if set(document.split()) <= set(WORDS)]
    short = [document for document in short if 0 < len(document.split()) <= 20]
    arrays = built(tmp_path / "short", short, np.arange(len(short)), 10)
    average = sum(len(document.split()) for document in short) / len(short)
    scores = {}
    for word in ("kond", "bond", "kazz"):
        holders = {number: document.split().count(word) for number, document in enumerate(short) if word in document}
        rarity = math.log(1 + (len(short) - len(holders) + 0.5) / (len(holders) + 0.5))
        for number, count in holders.items():
            norm = 0.9 * (0.6 + 0.4 * len(short[number].split()) / average)
            scores[number] = scores.get(number, 0.0) + rarity * count / (count + norm)
    found = Index(arrays, tmp_path / "short").search("kond bond kazz", len(short))
    assert set(found) == set(scores)
    assert len(set(scores.values())) > 3
    assert all(scores[first] > scores[second] - 1e-6 for first, second in pairwise(found))


@pytest.mark.parametrize("documents", [[], [""], ["the of", ""]])
def test_an_index_without_terms_finds_nothing(tmp_path: Path, documents: list[str]) -> None:
    arrays = built(tmp_path / "none", documents, np.arange(len(documents)), 10)
    assert Index(arrays, tmp_path / "none").search("anything", 5) == ()


def test_memory_hangs_on_the_block_and_not_on_the_postings(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [f"word{number}" for number in range(2000)]
    with tempfile.TemporaryFile() as spill:
        builder = IndexBuilder(tmp_path, spill, block=5_000)
        tracemalloc.start()
        for _ in range(500):
            builder.add(" ".join(rng.sample(words, 200)))
        builder.finish(np.arange(500))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # 100,000 postings, of which even the packed form has six bytes each.
    assert (tmp_path / "posting_ranks.npy").stat().st_size > 400_000
    assert peak < 15 * 100_000
