"""Writes a made-up world with questions in the file formats of the official data, and measures it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

from agent_envs.declarations import OnProgress
from agent_envs.errors import EnvError
from agent_envs.search_qa.checks import check
from agent_envs.search_qa.data import CORPUS_FILE, INDEX_FOLDER, MANIFEST_FILE
from agent_envs.search_qa.drawing import Search, draw_questions
from agent_envs.search_qa.levels import LEVELS, SPLITS, Level, Shape
from agent_envs.search_qa.mentions import MENTIONS_FILE
from agent_envs.search_qa.passages import make_passages
from agent_envs.search_qa.questions import Question, load_questions
from agent_envs.search_qa.world import YEARS, World, make_world

__all__ = ["VERSION", "Engine", "generate"]

VERSION = 1
"""Written into the manifest. Raise it when equal arguments make other data than before."""
_STAGES = 5

Engine = Callable[[Path, Path], Search]
"""Indexes a corpus file into a new folder, and returns the search over it."""


def generate(
    root: str | os.PathLike[str],
    level: str | Level = "small",
    seed: int = 0,
    on_progress: OnProgress | None = None,
    engine: Engine | None = None,
) -> Path:
    """Write a world to ``root``: passages, questions of three splits, mentions, index and manifest.

    Older files of the same names are replaced, all at the end, so a refusal leaves them as they were. Equal arguments
    write equal files.

    Args:
        root: the folder; created if need be.
        level: a name in ``LEVELS``, or parameters of your own.
        seed: another seed makes another world.
        on_progress: called after each stage.
        engine: what searches; None takes the embedded one.

    Returns:
        Path of the manifest.

    Raises:
        EnvError: there is no such level, the folder cannot be written, or the data is refused (see ``check``).
    """
    if isinstance(level, str) and level not in LEVELS:
        raise EnvError(f"there is no level {level!r} of generated questions; choose one of {', '.join(LEVELS)}")
    given = LEVELS[level] if isinstance(level, str) else level
    tell = on_progress or (lambda done, total: None)
    folder = Path(root).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
            made = _make(Path(scratch), given, seed, tell, engine or _embedded)
            manifest = {"version": VERSION, "level": level if isinstance(level, str) else "", "seed": seed, **made}
            _write(Path(scratch) / MANIFEST_FILE, [json.dumps(manifest, indent=1)])
            for path in sorted(Path(scratch).iterdir()):
                _move(path, folder / path.name)
    except OSError as error:
        raise EnvError(f"the generated world cannot be written to {folder}: {error.strerror or error}") from error
    tell(_STAGES, _STAGES)
    return folder / MANIFEST_FILE


def _make(folder: Path, level: Level, seed: int, tell: OnProgress, engine: Engine) -> Mapping[str, object]:
    world = make_world(level, seed)
    passages = {str(number): passage for number, passage in enumerate(make_passages(world, level, seed))}
    _write(folder / CORPUS_FILE, (_json(id=name, contents=passage.contents) for name, passage in passages.items()))
    _write(folder / MENTIONS_FILE, [json.dumps(_mentions(world))])
    tell(1, _STAGES)
    search = _remembered(engine(folder / CORPUS_FILE, folder / INDEX_FOLDER))
    tell(2, _STAGES)
    for split, drawn in draw_questions(world, level, seed, passages, search).items():
        _write(folder / f"{split}.jsonl", map(_line, drawn))
    tell(3, _STAGES)
    # Read back, so that what is measured is what a run will read.
    questions = {split: load_questions(folder, split) for split in SPLITS}
    measured = check(questions, passages, world.entities.keys(), search, level.topk, level.max_steps)
    tell(4, _STAGES)
    return {
        "parameters": asdict(level),
        "play": {"topk": level.topk, "names": level.names, "max_steps": level.max_steps},
        "counts": {
            "passages": len(passages),
            "articles": len(world.entities),
            "questions": {split: len(items) for split, items in questions.items()},
        },
        "measured": asdict(measured),
        "sha256": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def _embedded(corpus: Path, out: Path) -> Search:
    # Imported here, because reading generated data does not need the engine.
    from agent_envs.search_qa.retrieval.tantivy import TantivyRetriever, build_index

    build_index(corpus, out)
    retriever = TantivyRetriever(corpus, out)
    return lambda queries, topk: [[hit.id for hit in hits] for hits in retriever.search(queries, topk)]


def _remembered(search: Search) -> Search:
    """Return ``search`` with a memory of all queries: the checks repeat those with which questions were drawn."""

    @cache
    def find(query: str, topk: int) -> list[str]:
        return search([query], topk)[0]

    return lambda queries, topk: [find(query, topk) for query in queries]


def _mentions(world: World) -> Mapping[str, object]:
    entities = {name: list(entity.names[1:]) for name, entity in world.entities.items()}
    values = {value for facts in world.facts.values() for value in facts.values() if value not in world.entities}
    return {"entities": entities, "values": sorted(values | set(map(str, YEARS)))}


def _line(question: Question) -> str:
    shape = Shape.of(question.category)
    return _json(
        id=question.id,
        question=question.question,
        golden_answers=question.answers,
        metadata={
            "kind": shape.kind,
            "hops": shape.hops,
            "path": question.path,
            "gold_ids": question.gold_ids,
            "queries": question.queries,
        },
    )


def _json(**values: object) -> str:
    return json.dumps(values, ensure_ascii=False)


def _write(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(f"{line}\n")


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    source.replace(target)
