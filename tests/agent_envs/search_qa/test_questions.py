"""Search QA: questions are read from official files in all their layouts, and from generated ones."""

from __future__ import annotations

import json
import sys

import pytest

from agent_envs.errors import EnvError
from agent_envs.search_qa.questions import Question, load_questions

SEARCH_R1 = {
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Answer it. For example, Beijing. Question: who wrote it?\n"}],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["Ann", "A. B."]}},
    "extra_info": {"split": "test", "index": 7},
}
VERL_AGENT = {
    "env_kwargs": {"question": "who wrote it?", "ground_truth": {"target": ["Ann", "A. B."]}, "data_source": "nq"},
    "extra_info": {"index": 7},
}
FLASH_RAG = {
    "id": "test_7",
    "question": "who wrote it?",
    "golden_answers": ["Ann", "A. B."],
    "metadata": {"level": "x"},
}
EXPECTED = Question("nq-7", "who wrote it?", ("Ann", "A. B."), "nq", "nq")


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("row", [SEARCH_R1, VERL_AGENT], ids=["search-r1", "verl-agent"])
def test_files_of_both_frameworks(tmp_path, row, ending):
    rows = [row | {"extra_info": {"index": index}} for index in range(7, 27)]
    write(tmp_path / f"test.{ending}", rows)
    found = load_questions(tmp_path, "test")
    assert found[0] == EXPECTED
    assert [question.id for question in found] == [f"nq-{index}" for index in range(7, 27)]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_benchmarks_in_folders_of_their_own(tmp_path, ending):
    for source in ("nq", "musique"):
        write(tmp_path / source / f"dev.{ending}", [FLASH_RAG])
    write(tmp_path / "musique" / "test.jsonl", [FLASH_RAG | {"golden_answers": "Ann"}])
    assert [(question.id, question.source) for question in load_questions(tmp_path, "valid")] == [
        ("musique-test_7", "musique"),
        ("nq-test_7", "nq"),
    ]
    assert [question.source for question in load_questions(tmp_path, "valid", sources=["nq"])] == ["nq"]
    assert load_questions(tmp_path, "test")[0].answers == ("Ann",)
    with pytest.raises(EnvError, match=r"no questions from nq; it has musique$"):
        load_questions(tmp_path, "test", sources=["nq"])


def test_plain_rows_are_numbered_and_columns_of_both_kinds_may_be_there(tmp_path):
    write(tmp_path / "train.jsonl", [{"question": f"q{n}?", "golden_answers": ["x", "x", ""]} for n in range(2)])
    assert load_questions(tmp_path, "train") == [Question(f"{n}", f"q{n}?", ("x",), "", "") for n in range(2)]
    write(tmp_path / "test.parquet", [SEARCH_R1 | {"id": "test_7", "question": "who?", "golden_answers": ["Bea"]}])
    assert load_questions(tmp_path, "test") == [Question("nq-test_7", "who?", ("Bea",), "nq", "nq")]


def test_generated_rows_say_how_they_are_answered(tmp_path):
    metadata = {"kind": "chain", "hops": 2, "path": ["A", "B", "C"], "gold_ids": ["4", "5"], "queries": ["A", "B by"]}
    write(tmp_path / "train.jsonl", [{"id": "0", "question": "q?", "golden_answers": ["C"], "metadata": metadata}])
    expected = Question("0", "q?", ("C",), "", "chain-2", ("4", "5"), ("A", "B", "C"), ("A", "B by"))
    assert load_questions(tmp_path, "train") == [expected]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 is no JSON"),
        ("[1]", "row 1 of .* it has no columns"),
        ('{"golden_answers": ["x"]}', "it has no text; give it a column question"),
        ('{"question": "q"}', "it has no answer"),
        ('{"question": "q", "golden_answers": [null, " "]}', "it has no answer"),
        ('{"id": 1, "question": "q", "golden_answers": ["x"]}\n' * 2, "row 2 of .* has the id '1' once more"),
        ("", "has no questions; choose another data_dir"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_sentence(tmp_path, content, message):
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(EnvError, match=message):
        load_questions(tmp_path, "train")


def test_missing_and_broken_files(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            EnvError, match=r"put test\.jsonl or test\.parquet there, or make data with gagpo env generate"
        ):
            load_questions(folder, "test")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 is not enough")
    pytest.importorskip("pyarrow")
    with pytest.raises(EnvError, match=r"test\.parquet cannot be read"):
        load_questions(tmp_path, "test")


def test_parquet_without_its_package_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(EnvError, match=r"needs pyarrow: run pip install pyarrow, or use JSON lines"):
        load_questions(tmp_path, "test")
