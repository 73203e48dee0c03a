"""The embedded index against a plain BM25, its files, and the corpus behind it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_envs import EnvError
from agent_envs.search_qa.corpus import Corpus
from agent_envs.search_qa.retrieval import Hit, Remembering, best_first
from agent_envs.search_qa.retrieval.tantivy import TantivyRetriever, build_index, open_index
from support.lakeside import PASSAGES, TITLES, write_lakeside


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_lakeside(tmp_path_factory.mktemp("lakeside"))
    build_index(folder / "corpus.jsonl", folder / "index")
    return folder


@pytest.fixture(scope="module")
def retriever(root: Path) -> TantivyRetriever:
    return TantivyRetriever(root / "corpus.jsonl", root / "index")


def words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def plain_bm25(query: str, k1: float = 1.2, b: float = 0.75) -> dict[str, float]:
    """Scores of all passages that have a word of the query."""
    texts = [words(f"{title} {text}") for title, text in PASSAGES]
    mean = sum(map(len, texts)) / len(texts)
    scores: Counter[str] = Counter()
    for word in set(words(query)):
        having = sum(word in text for text in texts)
        weight = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        for number, text in enumerate(texts):
            count = text.count(word)
            if count:
                norm = k1 * (1 - b + b * len(text) / mean)
                scores[str(number)] += weight * count * (k1 + 1) / (count + norm)
    return dict(scores)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from(sorted({word for title, text in PASSAGES for word in words(f"{title} {text}")})), max_size=5
    ),
    st.integers(1, 25),
)
def test_hits_are_those_of_a_plain_bm25(retriever: TantivyRetriever, chosen: list[str], topk: int) -> None:
    query = " ".join(chosen)
    (hits,) = retriever.search([query], topk)
    expected = plain_bm25(query)
    assert len(hits) == min(topk, len(expected))
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True)[:topk], rel=1e-5)
    assert all(hit.score == pytest.approx(expected[hit.id], rel=1e-5) for hit in hits)


@pytest.mark.parametrize("in_order", [True, False])
def test_of_equal_scores_the_first_are_taken_and_sorted_by_id(tmp_path: Path, in_order: bool) -> None:
    corpus = tmp_path / "corpus.jsonl"
    ids = [hashlib.sha256(str(number).encode()).hexdigest()[:6] for number in range(300)]
    corpus.write_text("".join(json.dumps({"id": name, "contents": '"T"\nsame words'}) + "\n" for name in ids))
    retriever = open_index(corpus, tmp_path / "index")
    assert retriever.notes["in_order"]
    retriever.notes["in_order"] = in_order
    (hits,) = retriever.search(["same"], 5)
    assert [hit.id for hit in hits] == sorted(ids[:5])


def test_equal_corpora_give_equal_files(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_index(root / "corpus.jsonl", tmp_path / name)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert not [name for name in one if name.endswith(".lock")]


@pytest.mark.parametrize(
    "query",
    ["", "   ", "?!", "\x00\x01", "\ud800", "voss " * 2000, "x" * 10_000, '"ana" AND (voss OR', "text:voss", "-voss"],
)
def test_any_query_is_answered(retriever: TantivyRetriever, query: str) -> None:
    (hits,) = retriever.search([query], 3)
    assert len(hits) <= 3
    assert bool(hits) == ("voss" in query)


@settings(deadline=None)
@given(st.text(st.characters(), max_size=80), st.integers(0, 4))
def test_no_query_fails(retriever: TantivyRetriever, query: str, topk: int) -> None:
    (hits,) = retriever.search([query], topk)
    assert hits == best_first(hits)
    assert len(hits) <= topk


def test_the_index_survives_a_fork(retriever: TantivyRetriever) -> None:
    (expected,) = retriever.search(["ana voss"], 3)
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, json.dumps(retriever.search(["ana voss"], 3)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert [Hit(*hit) for hit in json.load(answer)[0]] == expected
    os.waitpid(child, 0)


def test_an_index_is_built_when_it_is_missing_or_of_another_corpus(tmp_path: Path) -> None:
    corpus = write_lakeside(tmp_path) / "corpus.jsonl"
    assert open_index(corpus, tmp_path / "index").search(["gannet bird"], 1)[0][0].id == str(TITLES.index("Gannet"))
    built = (tmp_path / "index" / "index.json").stat().st_mtime_ns
    open_index(corpus, tmp_path / "index")
    assert (tmp_path / "index" / "index.json").stat().st_mtime_ns == built
    with corpus.open("a") as file:
        file.write('\n{"id": "new", "title": "Dodo", "text": "A dodo is a bird."}\n')
    (hits,) = open_index(corpus, tmp_path / "index").search(["dodo"], 3)
    assert hits[0][::2] == ("new", '"Dodo"\nA dodo is a bird.')


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no passages"),
        ("\n\n", "has no passages"),
        ("[1]\n", "line 1, is not a JSON object"),
        ('{"id": "a", "contents": "x"}\n{"id": "b"}\n', "line 2, has no id and contents"),
        ('{"id": true, "contents": "x"}\n', "line 1, has no id"),
        ('{"id": "a", "contents": "x"}\n{"id": "a", "contents": "y"}\n', "two passages with the id 'a'"),
        ("\xff\n", "line 1, is not a JSON object"),
    ],
)
def test_what_is_no_corpus_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(EnvError, match=said):
        open_index(tmp_path / "corpus.jsonl", tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    with pytest.raises(EnvError, match="there is no corpus"):
        open_index(tmp_path / "other.jsonl", tmp_path / "index")


def test_passages_by_number_and_by_id(root: Path, tmp_path: Path) -> None:
    corpus = Corpus(root / "corpus.jsonl", root / "index")
    assert len(corpus) == len(PASSAGES)
    for number, (title, _) in enumerate(PASSAGES):
        assert corpus.find(str(number)) == corpus[number]
        assert corpus[number].contents.startswith(f'"{title}"\n')
    with pytest.raises(EnvError, match="no passage 'x'"):
        corpus.find("x")
    with pytest.raises(EnvError, match="cannot be opened"):
        Corpus(root / "corpus.jsonl", tmp_path)


class Counting:
    def __init__(self) -> None:
        self.asked: list[tuple[list[str], int]] = []

    def search(self, queries: list[str], topk: int) -> list[list[Hit]]:
        self.asked.append((list(queries), topk))
        return [[Hit(query, 1.0, query)] for query in queries]

    async def asearch(self, queries: list[str], topk: int) -> list[list[Hit]]:
        return self.search(queries, topk)


def test_latest_answers_are_remembered() -> None:
    counting = Counting()
    remembering = Remembering(counting, kept=2)
    assert [hits[0].id for hits in remembering.search(["a", "b", "a"], 3)] == ["a", "b", "a"]
    remembering.search(["a"], 3)
    asyncio.run(remembering.asearch(["b", "a"], 3))
    assert counting.asked == [(["a", "b"], 3)]
    remembering.search(["a"], 2)
    remembering.search(["b"], 3)
    assert counting.asked[1:] == [(["a"], 2), (["b"], 3)]
    assert [hits[0].id for hits in remembering.search(["c", "d", "e"], 3)] == ["c", "d", "e"]
