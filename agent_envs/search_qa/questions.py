"""Questions with their answers, read from official files in all their layouts and from generated ones."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_envs.errors import EnvError

__all__ = ["Question", "load_questions", "question_files"]

_FILE_NAMES: Mapping[str, tuple[str, ...]] = {"train": ("train",), "valid": ("valid", "dev", "val"), "test": ("test",)}
"""Split -> names of its files; benchmarks name theirs in different ways."""
_COLUMNS = (
    "id",
    "question",
    "golden_answers",
    "data_source",
    "prompt",
    "reward_model",
    "extra_info",
    "env_kwargs",
    "metadata",
)
_QUESTION_MARKER = "Question:"
"""What a ready-made prompt has before the question."""

Row = Mapping[str, object]


@dataclass(frozen=True)
class Question:
    """A question with its correct answers."""

    id: str
    """Unique in its split."""
    question: str
    answers: tuple[str, ...]
    """All that count as correct, the most usual one first."""
    source: str
    """Benchmark that it comes from; "" for a generated question."""
    category: str
    """What success is reported by: the source, or kind and hops of a generated question, such as "chain-2"."""
    gold_ids: tuple[str, ...] = ()
    """Ids of the passages that are needed, in order, for a generated question."""
    path: tuple[str, ...] = ()
    """Names on the way from what the question names to the answer, for a generated question."""
    queries: tuple[str, ...] = ()
    """For each of ``gold_ids``, words that find the passage."""


def load_questions(data_dir: Path, split: str, sources: Collection[str] = ()) -> list[Question]:
    """Return a split's questions in the order of its files.

    The files are ``<split>.jsonl`` or ``<split>.parquet`` in the folder or, for benchmarks as they are published, in
    folders inside it that have the benchmarks' names; ``dev`` and ``val`` are names of the split valid too. A row has
    ``question`` and ``golden_answers``, or the columns of the two training frameworks for search agents:
    ``reward_model.ground_truth`` with a ``prompt`` that ends in the question, or ``env_kwargs``.

    Args:
        data_dir: the folder.
        split: train, valid or test.
        sources: benchmarks to keep (``data_source``, else the name of the inner folder); empty keeps all.

    Raises:
        EnvError: there is no file, a file cannot be read or has something else in it, an id occurs twice, or nothing
            is left.
    """
    files = question_files(data_dir, split)
    if not files:
        raise EnvError(
            f"{data_dir} has no questions of split {split!r}; put {split}.jsonl or {split}.parquet there, or make data "
            "with gagpo env generate search_qa --out DIR"
        )
    found: dict[str, Question] = {}
    known: set[str] = set()
    for path, folder in files:
        for number, row in enumerate(_rows(path)):
            try:
                question = _question(row, number, folder)
            except (ValueError, TypeError, LookupError) as error:
                raise EnvError(f"row {number + 1} of {path} is no question: {error}") from error
            known.add(question.source)
            if sources and question.source not in sources:
                continue
            if question.id in found:
                raise EnvError(f"row {number + 1} of {path} has the id {question.id!r} once more; make ids unique")
            found[question.id] = question
    if not found:
        have = ", ".join(sorted(known - {""})) or "no named source"
        wanted = f" from {', '.join(sources)}; it has {have}" if sources else "; choose another data_dir"
        raise EnvError(f"split {split!r} of {data_dir} has no questions{wanted}")
    return list(found.values())


def question_files(data_dir: Path, split: str) -> list[tuple[Path, str]]:
    """Return the files of a split's questions, each with the name of the inner folder it is in ("" for none)."""
    folders = [(data_dir, "")]
    if data_dir.is_dir():
        folders += [(folder, folder.name) for folder in sorted(data_dir.iterdir()) if folder.is_dir()]
    return [
        (path, source)
        for folder, source in folders
        for name in _FILE_NAMES[split]
        for path in (folder / f"{name}.jsonl", folder / f"{name}.parquet")
        if path.is_file()
    ]


def _rows(path: Path) -> Iterator[Row]:
    read = {".jsonl": _json_rows, ".parquet": _parquet_rows}[path.suffix]
    try:
        yield from read(path)
    except (OSError, ValueError) as error:
        # Errors of pyarrow are ValueErrors too; they may run over several lines.
        raise EnvError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {number + 1} is no JSON ({error})") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise EnvError(f"reading {path} needs pyarrow: run pip install pyarrow, or use JSON lines") from error
    with parquet.ParquetFile(path) as file:
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()


def _question(row: Row, number: int, folder: str) -> Question:
    if not isinstance(row, Mapping):
        raise ValueError("it has no columns")
    kwargs, extra, metadata = (_mapping(row.get(name)) for name in ("env_kwargs", "extra_info", "metadata"))
    generated = "gold_ids" in metadata
    source = "" if generated else str(row.get("data_source") or kwargs.get("data_source") or folder)
    text = _plain(row.get("question") or kwargs.get("question") or _prompted(row.get("prompt"))).strip()
    truth = (
        row.get("golden_answers") or _mapping(row.get("reward_model")).get("ground_truth") or kwargs.get("ground_truth")
    )
    answers = _answers(truth)
    if not text:
        raise ValueError("it has no text; give it a column question")
    if not answers:
        raise ValueError("it has no answer; give it a column golden_answers")
    name = next((str(value) for value in (row.get("id"), extra.get("index")) if value is not None), str(number))
    if not generated:
        # Benchmarks number their questions alike, so ids of a mixture repeat.
        return Question(f"{source}-{name}" if source else name, text, answers, source, source)
    gold_ids, path, queries = (tuple(map(str, _list(metadata.get(key)))) for key in ("gold_ids", "path", "queries"))
    if queries and len(queries) != len(gold_ids):
        raise ValueError("it has another number of queries than of gold_ids")
    return Question(name, text, answers, "", f"{metadata['kind']}-{metadata['hops']}", gold_ids, path, queries)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _answers(value: object) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        value = value.get("target")
    values = [value] if isinstance(value, str) else _list(value)
    return tuple(dict.fromkeys(_plain(answer) for answer in values if answer is not None and str(answer).strip()))


def _plain(value: object) -> str:
    """Return a text that can be encoded for a model; JSON can spell lone surrogates, which cannot."""
    return str(value).encode("utf-8", "replace").decode()


def _prompted(prompt: object) -> str:
    """Return the question in a ready-made prompt: what follows the last marker, or all of the last message."""
    messages = [_mapping(message).get("content") for message in _list(prompt)]
    text = messages[-1] if messages else prompt
    return text.rpartition(_QUESTION_MARKER)[2] if isinstance(text, str) else ""
