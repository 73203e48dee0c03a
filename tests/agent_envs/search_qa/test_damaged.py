"""Questions and corpora of any content load, or are refused in one sentence."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_envs.errors import EnvError
from agent_envs.search_qa.questions import load_questions
from agent_envs.search_qa.retrieval.tantivy import open_index

ROWS = [
    {
        "id": f"q{number}", "question": "who wrote it?", "golden_answers": ["Ann"], "data_source": "nq",
        "prompt": [{"role": "user", "content": "Question: who?"}],
        "reward_model": {"ground_truth": {"target": ["Ann"]}},
        "metadata": {"gold_ids": ["1"], "kind": "chain", "hops": 1, "path": ["it"], "queries": ["it"]},
    }
    for number in range(4)
]  # fmt: skip
PASSAGES = [{"id": str(number), "contents": f'"Title {number}"\nwords of it'} for number in range(6)]

edits = st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), min_size=1, max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["target", "content", "x"]), inner),
    max_leaves=6,
)
columns = st.dictionaries(
    st.sampled_from(
        ["id", "question", "golden_answers", "data_source", "prompt", "reward_model", "extra_info", "metadata"]
    ),
    values,
)


def damaged(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    """Overwrite some bytes; a place beyond the end cuts the content there."""
    for place, new in changes:
        place %= len(content) + 2
        content = content[:place] + new + (content[place + len(new) :] if new else b"")
        content = content or b" "
    return content


def refused_or(work: Callable[[], object]) -> None:
    """Do it; a refusal has to be one sentence."""
    said = ""
    try:
        work()
    except EnvError as error:
        said = str(error)
    assert "\n" not in said


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def load(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        refused_or(lambda: load_questions(Path(folder), "test"))


@settings(deadline=None)
@given(edits)
def test_damaged_lines_of_questions(changes: list[tuple[int, bytes]]) -> None:
    load("test.jsonl", damaged(lines(ROWS), changes))


@settings(deadline=None)
@given(st.lists(columns | values, max_size=3))
def test_questions_of_any_shape(rows: list[object]) -> None:
    load("test.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows).encode())


@settings(deadline=None)
@given(edits)
def test_damaged_parquet(changes: list[tuple[int, bytes]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), stream)
    load("test.parquet", damaged(stream.getvalue(), changes))


def test_a_lone_surrogate_is_replaced(tmp_path: Path) -> None:
    row = b'{"question": "who \\ud800?", "golden_answers": ["A\\udfff"]}\n'
    (tmp_path / "test.jsonl").write_bytes(row)
    (question,) = load_questions(tmp_path, "test")
    assert (question.question, question.answers) == ("who ??", ("A?",))


def test_json_of_great_depth() -> None:
    load("test.jsonl", b"[" * 100_000)


@settings(deadline=None, max_examples=30)
@given(edits | st.lists(columns | values, max_size=4))
def test_damaged_corpora(changes: list[object]) -> None:
    edited = all(isinstance(change, tuple) for change in changes)
    content = damaged(lines(PASSAGES), changes) if edited else b"".join(lines([row]) for row in changes)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        corpus.write_bytes(content)
        refused_or(lambda: open_index(corpus, Path(folder) / "index").search(["title words"], 3))
