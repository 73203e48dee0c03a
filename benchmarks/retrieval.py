"""Build and query time of the embedded index of ``search_qa``, beside plain NumPy postings on the same passages.

Passages have a title of two words and 100 words of text whose frequencies follow Zipf's law. A query is the title of a
passage and two words of middling frequency; every query is asked once, so nothing is answered from a memory, and the
three best passages are read. Times are processor time. The engines answer the same blocks of queries in turns, and a
ratio is taken within a block.

``--sizes`` measures both engines; ``--once`` builds and queries the index alone, for a size at which postings take too
long. Results are added to ``--out``, so the sizes may be measured one after another, in any number of calls; build time
and disk of ``FULL`` passages are extrapolated along the line through the two largest sizes.

Run: ``python benchmarks/retrieval.py --sizes 10000 100000 --once 1000000 --out retrieval.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_envs.search_qa.corpus import Corpus, read_passages
from agent_envs.search_qa.retrieval import Hit, best_first
from agent_envs.search_qa.retrieval.tantivy import ENGINE, TantivyRetriever, build_index

FULL = 21_015_324
"""Passages of the Wikipedia dump of 2018 that the public benchmarks are searched in."""
HERE = Path(__file__).resolve().parents[1]
MIB = 2**20
TOPK = 3
WORDS = 100
VOCABULARY = 200_000
TITLE_WORDS = 3_000
MIDDLING = (200, 5_000)
BLOCK = 10
K1, B = 1.2, 0.75


def write_corpus(path: Path, size: int, seed: int = 0) -> None:
    """Write ``size`` passages with titles that all differ."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{rank:x}" for rank in range(VOCABULARY)])
    shares = 1 / (np.arange(VOCABULARY) + 3.0)
    ends = np.cumsum(shares / shares.sum())
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, size, 10_000):
            count = min(10_000, size - start)
            texts = words[np.searchsorted(ends, rng.random((count, WORDS))).clip(max=VOCABULARY - 1)]
            file.writelines(
                json.dumps({"id": str(start + row), "contents": f'"{title(start + row)}"\n{" ".join(texts[row])}'})
                + "\n"
                for row in range(count)
            )


def title(number: int) -> str:
    """Return the title of a passage; the second word shifts, so that pairs are spread over all words."""
    first, shift = number % TITLE_WORDS, number // TITLE_WORDS
    return f"t{first:x} u{(first * 7 + shift) % TITLE_WORDS:x}"


def queries(size: int, count: int, seed: int = 1) -> list[tuple[str, str]]:
    """Return different queries, each with the id of the passage that it is about."""
    rng = np.random.default_rng(seed)
    about = rng.choice(size, count, replace=False)
    beside = rng.integers(*MIDDLING, size=(count, 2))
    return [
        (f"{title(int(number))} w{first:x} w{second:x}", str(number))
        for number, (first, second) in zip(about, beside, strict=True)
    ]


class Postings:
    """BM25 over posting lists in mapped arrays: scores of all passages are added up, and the best are picked."""

    def __init__(self, corpus: Corpus, folder: Path) -> None:
        self._corpus = corpus
        self._terms = json.loads((folder / "terms.json").read_text())
        self._offsets, self._passages, self._weights = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("offsets", "passages", "weights")
        )

    @staticmethod
    def build(path: Path, folder: Path) -> None:
        """Write the arrays; a weight has all factors of a score but the word's rarity."""
        terms: dict[str, int] = {}
        ids: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        lengths = []
        for number, (_, passage) in enumerate(read_passages(path)):
            assert passage is not None
            words = words_of(passage.contents)
            found, times = np.unique([terms.setdefault(word, len(terms)) for word in words], return_counts=True)
            ids.append(found.astype(np.int32))
            counts.append(times.astype(np.int32))
            numbers.append(np.full(len(found), number, dtype=np.int32))
            lengths.append(len(words))
        term = np.concatenate(ids)
        order = np.argsort(term, kind="stable")
        length = np.array(lengths, dtype=np.float32)
        passages, times = np.concatenate(numbers)[order], np.concatenate(counts)[order].astype(np.float32)
        norm = K1 * (1 - B + B * length / length.mean())
        folder.mkdir(exist_ok=True)
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(np.bincount(term, minlength=len(terms)))]))
        np.save(folder / "passages.npy", passages)
        np.save(folder / "weights.npy", (times * (K1 + 1) / (times + norm[passages])).astype(np.float32))
        (folder / "terms.json").write_text(json.dumps(terms))

    def search(self, asked: Sequence[str], topk: int) -> list[list[Hit]]:
        """Answer as a ``Retriever`` does."""
        return [self._find(query, topk) for query in asked]

    def _find(self, query: str, topk: int) -> list[Hit]:
        size = len(self._corpus)
        parts, weights = [], []
        for word in dict.fromkeys(words_of(query)):
            if (term := self._terms.get(word)) is not None:
                chosen = slice(int(self._offsets[term]), int(self._offsets[term + 1]))
                having = chosen.stop - chosen.start
                parts.append(self._passages[chosen])
                weights.append(self._weights[chosen] * np.float32(np.log(1 + (size - having + 0.5) / (having + 0.5))))
        if not parts:
            return []
        scores = np.bincount(np.concatenate(parts), np.concatenate(weights), minlength=size)
        best = np.argpartition(scores, size - topk)[size - topk :]
        hits = ((self._corpus[int(number)], float(scores[number])) for number in best)
        return best_first(Hit(passage.id, score, passage.contents) for passage, score in hits if score > 0)


def words_of(text: str) -> list[str]:
    """Split text as the index does, as far as these passages need it."""
    return text.lower().replace('"', " ").split()


def blocks(items: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    """Cut queries into blocks."""
    return (items[start : start + BLOCK] for start in range(0, len(items), BLOCK))


def measure(size: int, count: int, both: bool, folder: Path) -> dict[str, Any]:
    """Build and query one corpus; the builds run in processes of their own, so that their peaks are seen."""
    corpus = folder / f"corpus_{size}.jsonl"
    if not corpus.is_file():
        write_corpus(corpus, size)
    row: dict[str, Any] = {"passages": size, "queries": count, "corpus_mib": corpus.stat().st_size / MIB}
    engines: dict[str, Any] = {}
    for name in ("index", "postings") if both else ("index",):
        built = folder / f"{name}_{size}"
        engines[name] = {**_in_process("--build", name, str(corpus), str(built)), "disk_mib": _bytes(built) / MIB}
    retriever = TantivyRetriever(corpus, folder / f"index_{size}")
    searches = {"index": retriever.search}
    if both:
        searches["postings"] = Postings(retriever.corpus, folder / f"postings_{size}").search
    times: dict[str, list[float]] = {name: [] for name in searches}
    found = dict.fromkeys(searches, 0)
    same = 0
    for number, block in enumerate(blocks(queries(size, count))):
        answers = {}
        # By turns first, so that neither engine always finds the passages in the processor's caches.
        for name in sorted(searches, reverse=bool(number % 2)):
            begin = time.process_time()
            answers[name] = [searches[name]([query], TOPK)[0] for query, _ in block]
            times[name].append((time.process_time() - begin) / len(block))
            found[name] += sum(
                any(hit.id == wanted for hit in hits) for hits, (_, wanted) in zip(answers[name], block, strict=True)
            )
        if both:
            pairs = zip(answers["index"], answers["postings"], strict=True)
            same += sum(one[0].id == other[0].id for one, other in pairs)
    for name, spent in times.items():
        engines[name]["query_ms"] = {"mean": 1e3 * statistics.mean(spent), "median": 1e3 * statistics.median(spent)}
        engines[name]["found_share"] = found[name] / count
    row["engines"] = engines
    if both:
        ratios = [one / other for one, other in zip(times["index"], times["postings"], strict=True)]
        row["ratio"] = {
            "of_means": statistics.mean(times["index"]) / statistics.mean(times["postings"]),
            "median_of_blocks": statistics.median(ratios),
            "largest_of_blocks": max(ratios),
        }
        row["same_first_share"] = same / count
    row["second_process"] = _in_process("--open", "index", str(corpus), str(folder / f"index_{size}"))
    return row


def build(kind: str, corpus: Path, out: Path) -> dict[str, float]:
    """Build one engine's files and return what it took."""
    begin = time.process_time()
    if kind == "index":
        build_index(corpus, out)
    else:
        Postings.build(corpus, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"build_s": time.process_time() - begin, "build_peak_mib": peak}


def open_shared(corpus: Path, out: Path) -> dict[str, float]:
    """Return by how much a process's own memory grows when it opens the index and searches it."""
    before = _private()
    retriever = TantivyRetriever(corpus, out)
    for query, _ in queries(len(retriever.corpus), 200, seed=2):
        retriever.search([query], TOPK)
    return {"private_growth_mib": (_private() - before) / MIB, "index_mib": _bytes(out) / MIB}


def _private() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _in_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def extrapolated(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return build time and disk of ``FULL`` passages, along the line through the two largest sizes."""
    small, large = sorted(rows, key=lambda row: row["passages"])[-2:]
    part = (FULL - small["passages"]) / (large["passages"] - small["passages"])
    ends = {
        name: (small["engines"]["index"][name], large["engines"]["index"][name]) for name in ("build_s", "disk_mib")
    }
    return {"passages": FULL, **{name: low + part * (high - low) for name, (low, high) in ends.items()}}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the sizes that were asked for and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="passages; both engines")
    parser.add_argument("--once", type=int, nargs="*", default=[], help="passages; the index alone")
    parser.add_argument("--queries", type=int, default=400, help="queries of each size (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="folder for corpora and indexes; kept")
    parser.add_argument("--out", type=Path, help="results, to which these are added")
    parser.add_argument("--build", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--open", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.build or given.open:
        kind, corpus, out = given.build or given.open
        done = build(kind, Path(corpus), Path(out)) if given.build else open_shared(Path(corpus), Path(out))
        sys.stdout.write(json.dumps(done))
        return
    known = json.loads(given.out.read_text()) if given.out and given.out.is_file() else {"sizes": []}
    rows = {row["passages"]: row for row in known["sizes"]}
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for size, both in [*((size, True) for size in given.sizes), *((size, False) for size in given.once)]:
            rows[size] = measure(size, given.queries, both, folder)
            sys.stdout.write(f"{json.dumps(rows[size])}\n")
    machine = {"python": platform.python_version(), "numpy": np.__version__, "engine": ENGINE, "cores": os.cpu_count()}
    results: dict[str, Any] = {"machine": machine, "sizes": [rows[size] for size in sorted(rows)]}
    if len(rows) > 1:
        results["extrapolated"] = extrapolated(results["sizes"])
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
