"""Reading JSON files element by element: what ``json`` reads, whatever the pieces, and a clear error otherwise."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_envs.webshop import jsonstream
from agent_envs.webshop.jsonstream import stream_list, stream_object
from agent_envs.webshop.products import CatalogueError

texts = st.text(st.characters(), max_size=20) | st.text('[]{},:"\\ é\u2028\U0001f600', max_size=8)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
layouts = st.sampled_from([None, 0, 3])
LIST = '[1, "a]", {"b": [2, "\\"}"]}, "é", 345]'
OBJECT = '{"a": 1, "}": [2, "]"], "é": {"b": null}, "n": 345}'


@pytest.fixture(params=[1, 3, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonstream, "_CHUNK_CHARS", request.param)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "file.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(path: Path) -> dict[str, Any]:
    return dict(stream_object(path))


@settings(max_examples=100, deadline=None)
@given(
    content=st.lists(values, max_size=5), indent=layouts, plain=st.booleans(), size=st.sampled_from([1, 2, 7, 1 << 20])
)
def test_lists_are_read_as_json_reads_them(content: list[Any], indent: int | None, plain: bool, size: int) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=plain)
    check(text, lambda path: list(stream_list(path)), size)


@settings(max_examples=100, deadline=None)
@given(content=st.dictionaries(texts, values, max_size=5), indent=layouts, size=st.sampled_from([1, 2, 7, 1 << 20]))
def test_objects_are_read_as_json_reads_them(content: dict[str, Any], indent: int | None, size: int) -> None:
    check(json.dumps(content, indent=indent), pairs, size)


def check(text: str, read: Any, size: int) -> None:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return  # A lone surrogate that is not escaped is no text that a file could hold.
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonstream, "_CHUNK_CHARS", size)
        # By their text, as NaN is not equal to itself.
        assert repr(read(written(Path(folder), data))) == repr(json.loads(text))


@pytest.mark.usefixtures("chunk")
def test_a_list_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for end in range(len(LIST)):
        with pytest.raises(CatalogueError, match=r"file\.json"):
            list(stream_list(written(tmp_path, LIST[:end])))


@pytest.mark.usefixtures("chunk")
def test_an_object_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for end in range(len(OBJECT)):
        with pytest.raises(CatalogueError, match=r"file\.json"):
            pairs(written(tmp_path, OBJECT[:end]))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(
    "content",
    [
        "[1 2]", "[1,,2]", "[,1]", "[1,]", "[1]]", "[1] x", "[}", "[1}", "[nul]", '["\n"]', '["\\x"]', "[[1]", "\x00",
        b'["\xe9"]', b'["\xf0\x9f', b"[1]\xff", b"\xff\xfe[\x001\x00]\x00", "{}", "null", "1", '"["', "", " \n ",
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(CatalogueError, match=r"file\.json"):
        list(stream_list(written(tmp_path, content)))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(
    "content",
    [
        '{"a" 1}',
        '{"a":1 "b":2}',
        '{"a":1,}',
        "{,}",
        "{1:2}",
        "{a:1}",
        '{"a":}',
        '{"a":1}}',
        '{"a":1} 2',
        "{]",
        "[]",
        "",
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(CatalogueError, match=r"file\.json"):
        pairs(written(tmp_path, content))


@pytest.mark.usefixtures("chunk")
def test_a_byte_order_mark_and_blanks_around_are_no_matter(tmp_path: Path) -> None:
    assert list(stream_list(written(tmp_path, f"\ufeff \r\n{LIST}\n\n"))) == json.loads(LIST)
    assert pairs(written(tmp_path, f"\ufeff\t{OBJECT} ")) == json.loads(OBJECT)


@pytest.mark.parametrize("size", range(1, 8))
def test_numbers_may_be_cut_anywhere_by_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(jsonstream, "_CHUNK_CHARS", size)
    text = "[0.5,-1.5e-7, 2E+10,3e5 ,-0.0,12.25]"
    assert list(stream_list(written(tmp_path, text))) == json.loads(text)


def test_repeated_names_all_come(tmp_path: Path) -> None:
    assert list(stream_object(written(tmp_path, '{"a": 1, "a": 2}'))) == [("a", 1), ("a", 2)]


def test_elements_before_a_broken_one_come_and_too_deep_ones_are_refused(tmp_path: Path) -> None:
    elements = stream_list(written(tmp_path, f"[1, {'[' * 100_000}"))
    assert next(elements) == 1
    with pytest.raises(CatalogueError, match="cannot be read as JSON"):
        next(elements)


def test_a_broken_element_is_not_looked_for_in_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonstream, "_CHUNK_CHARS", 10)
    monkeypatch.setattr(jsonstream, "_LARGEST_ELEMENT_CHARS", 50)
    assert list(stream_list(written(tmp_path, f'["{"a" * 45}"]'))) == ["a" * 45]
    path = written(tmp_path, f"[x{' ' * 10_000}")
    read: list[int] = []

    def counted(file: Any, size: int) -> str:
        read.append(size)
        return str(file.read(size))

    with path.open() as file:
        text = jsonstream._Text(type("Counted", (), {"read": lambda _, size: counted(file, size)})())
        text.take("[")
        with pytest.raises(json.JSONDecodeError):
            text.value()
    assert sum(read) < 500


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def lines() -> Iterator[str]:
        yield "["
        for number in range(20_000):
            yield json.dumps({"number": number, "text": "x" * 1000}) + ","
        yield "0]"

    path = tmp_path / "large.json"
    with path.open("w") as file:
        file.writelines(lines())
    tracemalloc.start()
    assert sum(1 for _ in stream_list(path)) == 20_001
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 3
