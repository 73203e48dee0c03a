"""BM25 over a corpus by the embedded engine tantivy; index and corpus are mapped files that processes share."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tantivy

from agent_envs.cache import locked
from agent_envs.errors import EnvError
from agent_envs.search_qa.corpus import Corpus, CorpusTables, read_passages
from agent_envs.search_qa.retrieval import Hit, best_first

__all__ = ["ENGINE", "TantivyRetriever", "build_index", "open_index"]

ENGINE = f"tantivy {version('tantivy')}"

_NOTES, _META, _MANAGED = "index.json", "meta.json", ".managed.json"
_FORMAT = 1
"""Of the folder. Raise it when what is in it changes, so that older ones are built anew."""
_HEAP_BYTES = 256_000_000
"""Memory of the build; a corpus whose index needs less becomes one segment."""
_LONGEST_WORD = 40
"""Bytes; the engine's own analysis leaves longer words out of the index."""
_MOST_WORDS = 256
"""Different words of a query that are searched for."""
_MOST_TIES = 1 << 10
_CHUNK = 10_000


def build_index(corpus: Path, out: Path) -> None:
    """Index a corpus into the folder ``out``, which is replaced. Equal corpora give equal files.

    Raises:
        EnvError: the corpus is not one, or the folder cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
        try:
            _build(corpus, scratch)
            shutil.rmtree(out, ignore_errors=True)
            scratch.chmod(0o755)
            scratch.rename(out)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise EnvError(
            f"the index {out} cannot be written ({error.strerror or error}); choose a folder with enough room"
        ) from error


def open_index(corpus: Path, folder: Path) -> TantivyRetriever:
    """Open the index of a corpus; one that is missing or of another corpus or engine is built first, by one process.

    Raises:
        EnvError: the corpus is not one, or the index can be neither read nor built.
    """
    if not corpus.is_file():
        raise EnvError(f"there is no corpus {corpus}; name a folder that holds corpus.jsonl")
    if not _fits(corpus, folder):
        try:
            with locked(folder.with_suffix(".lock")):
                if not _fits(corpus, folder):
                    build_index(corpus, folder)
        except OSError as error:
            raise EnvError(
                f"the index {folder} cannot be built ({error.strerror or error}); make its folder writable"
            ) from error
    return TantivyRetriever(corpus, folder)


class TantivyRetriever:
    """Searches an index that ``build_index`` made of ``corpus`` in ``folder``.

    The engine is opened by the process that first searches, because its threads would not survive a fork.

    Raises:
        EnvError: a file cannot be read.
    """

    def __init__(self, corpus: Path, folder: Path) -> None:
        self.corpus = Corpus(corpus, folder)
        self.notes: dict[str, Any] = _notes(folder)
        """What a run records: engine, passages, and hashes of corpus and index."""
        self._folder = folder
        self._opened_by = 0

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        if self._opened_by != os.getpid():
            self._open()
        return [self._find(query, topk) for query in queries]

    async def asearch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        return self.search(queries, topk)

    def _open(self) -> None:
        try:
            index = tantivy.Index.open(str(self._folder))
        except ValueError as error:
            raise EnvError(f"the index {self._folder} cannot be read ({error}); remove it to have it built") from error
        self._schema, self._searcher = index.schema, index.searcher()
        self._analyzer = _analyzer()
        self._opened_by = os.getpid()

    def _find(self, query: str, topk: int) -> list[Hit]:
        words = self._analyzer.analyze(query.encode("utf-8", "replace").decode())
        terms = [
            (tantivy.Occur.Should, tantivy.Query.term_query(self._schema, "text", word, index_option="freq"))
            for word in list(dict.fromkeys(words))[:_MOST_WORDS]
        ]
        if not terms or topk < 1:
            return []
        hits = []
        for score, number in self._best(tantivy.Query.boolean_query(terms), topk):
            passage = self.corpus[number]
            hits.append(Hit(passage.id, score, passage.contents))
        return best_first(hits)

    def _best(self, query: tantivy.Query, topk: int) -> list[tuple[float, int]]:
        """Return score and number of the best passages; of equal ones, those that come first in the corpus."""
        limit = topk
        found = self._searcher.search(query, limit, count=False).hits
        # The engine prefers what comes first in its index. Where that is not the corpus's order, all that tie for the
        # last place have to be seen.
        while not self.notes["in_order"] and len(found) == limit < _MOST_TIES and found[-1][0] == found[topk - 1][0]:
            limit *= 4
            found = self._searcher.search(query, limit, count=False).hits
        numbers = self._searcher.fast_field_values("number", [address for _, address in found])
        best = [(float(score), int(number or 0)) for (score, _), number in zip(found, numbers, strict=True)]
        return sorted(best, key=lambda one: (-one[0], one[1]))[:topk]


def _build(corpus: Path, folder: Path) -> None:
    schema = (
        tantivy.SchemaBuilder()
        .add_unsigned_field("number", fast=True)
        .add_text_field("text", index_option="freq")
        .build()
    )
    # One thread, so that segments and the order in them repeat.
    writer = tantivy.Index(schema, path=str(folder)).writer(_HEAP_BYTES, 1)
    tables, digest = CorpusTables(), hashlib.sha256()
    try:
        for line, passage in read_passages(corpus):
            digest.update(line)
            if passage is not None:
                document = tantivy.Document()
                document.add_unsigned("number", len(tables))
                document.add_text("text", passage.contents)
                writer.add_document(document)
            tables.add(line, passage)
        if not len(tables):
            raise EnvError(f"the corpus {corpus} has no passages; name a folder with a corpus")
        writer.commit()
    finally:
        # Until then the engine's threads write into the folder.
        writer.wait_merging_threads()
    tables.save(folder)
    in_order = _in_order(folder, len(tables))
    _name_by_content(folder)
    opened = Corpus(corpus, folder)
    opened.check_ids()
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    notes = {
        "format": _FORMAT,
        "engine": ENGINE,
        "passages": len(tables),
        "in_order": in_order,
        "corpus_bytes": corpus.stat().st_size,
        "corpus": digest.hexdigest(),
        "index": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
    }
    (folder / _NOTES).write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")


def _in_order(folder: Path, passages: int) -> bool:
    """Return whether the index has the passages in the order of the corpus, as it does unless it was merged."""
    searcher = tantivy.Index.open(str(folder)).searcher()
    if searcher.num_segments > 1:
        return False
    for start in range(0, passages, _CHUNK):
        numbers = range(start, min(start + _CHUNK, passages))
        addresses = [tantivy.DocAddress(0, number) for number in numbers]
        if searcher.fast_field_values("number", addresses) != list(numbers):
            return False
    return True


def _name_by_content(folder: Path) -> None:
    """Rename the engine's files, whose names are random, after what is in them, and drop its lock files."""
    for lock in folder.glob(".tantivy-*.lock"):
        lock.unlink()
    meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    known = [_META]
    for segment in meta["segments"]:
        files = sorted(folder.glob(f"{segment['segment_id'].replace('-', '')}.*"))
        name = hashlib.sha256("".join(map(_sha256, files)).encode()).hexdigest()[:32]
        known += [file.rename(file.with_name(f"{name}{file.suffix}")).name for file in files]
        segment["segment_id"] = str(uuid.UUID(name))
    meta["segments"].sort(key=lambda segment: segment["segment_id"])
    (folder / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
    (folder / _MANAGED).write_text(json.dumps(sorted(known)), encoding="utf-8")


def _fits(corpus: Path, folder: Path) -> bool:
    """Return whether the folder has an index of this form and engine for a corpus of this size."""
    try:
        notes = _notes(folder)
    except EnvError:
        return False
    wanted = {"format": _FORMAT, "engine": ENGINE, "corpus_bytes": corpus.stat().st_size}
    return wanted.items() <= notes.items()


def _notes(folder: Path) -> dict[str, Any]:
    try:
        notes = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnvError(f"the index {folder} cannot be read ({error}); remove it to have it built") from error
    return notes if isinstance(notes, dict) else {}


def _analyzer() -> tantivy.TextAnalyzer:
    """Return the analysis that the engine's default gives to passages."""
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(_LONGEST_WORD))
        .filter(tantivy.Filter.lowercase())
        .build()
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
