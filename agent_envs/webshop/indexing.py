"""Making the search index of a catalogue that need not fit into memory: sorted runs on disk, merged range by range."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from agent_envs.webshop.search import TERMS, term_key
from agent_envs.webshop.store import ArrayWriter, BlobWriter
from agent_envs.webshop.text import analyze

__all__ = ["IndexBuilder"]

K1 = np.float32(0.9)
B = np.float32(0.4)

_BLOCK = 1 << 20
_EXACT_LENGTHS = 24


class _Run(NamedTuple):
    """Postings of consecutive documents in the spill file, by term and then by document."""

    start: int
    """Number of its first posting in the file."""
    terms: np.ndarray
    """Ids of its terms, ascending."""
    ends: np.ndarray
    """Before each term, and after the last one: how many postings of the run there are so far."""


class IndexBuilder:
    """Takes documents one by one; ``finish`` gives the arrays of an ``Index``.

    Every method may raise ``OSError``, as a disk may be full.

    Args:
        folder: where ``Index`` will find the large parts of the result.
        spill: an empty file, open for writing and reading, for what does not fit into memory.
        block: postings that are sorted in memory at once, about.
    """

    def __init__(self, folder: Path, spill: IO[bytes], block: int = _BLOCK) -> None:
        self._folder = folder
        self._spill = spill
        self._block = block
        self._runs: list[_Run] = []
        self._ids: dict[str, int] = {}
        self._lengths = array("i")
        # Of the documents since the last run: number of different terms, and these terms with their counts.
        self._distinct = array("i")
        self._terms = array("i")
        self._counts = array("i")
        self._codes: dict[int, int] = {}

    def add(self, text: str) -> None:
        """Append the next document."""
        terms = analyze(text)
        counts = Counter(terms)
        ids = self._ids
        self._lengths.append(len(terms))
        self._distinct.append(len(counts))
        self._terms.extend([ids.setdefault(term, len(ids)) for term in counts])
        self._counts.extend(counts.values())
        if len(self._terms) >= self._block:
            self._write_run()

    def finish(self, rank: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of the index, besides those that are written to the folder.

        Args:
            rank: for each document, in the order added, its place among all product ids in ascending order. Postings
                name documents by it, so that equal scores are in the right order without looking at ids.
        """
        self._write_run()
        frequencies = np.zeros(len(self._ids), dtype=np.int64)
        for run in self._runs:
            frequencies[run.terms] += np.diff(run.ends)
        offsets = np.concatenate([[0], np.cumsum(frequencies)]).astype(np.int64)
        self._merge(offsets, rank)
        names = sorted(self._ids, key=term_key)
        writer = BlobWriter(self._folder / TERMS)
        for name in names:
            writer.add(term_key(name))
        lengths = np.array(self._lengths, dtype=np.int64)
        return {
            "term_offsets": writer.finish(),
            "term_ids": np.array([self._ids[name] for name in names], dtype=np.int32),
            "posting_offsets": offsets,
            "saturation": _saturation(np.array(list(self._codes), dtype=np.int64), lengths),
            "indexed": np.array([len(lengths), np.count_nonzero(lengths)], dtype=np.int64),
        }

    def _write_run(self) -> None:
        """Put the documents since the last run into the spill file, in the order of their terms."""
        terms = np.array(self._terms, dtype=np.int32)
        known = len(self._lengths) - len(self._distinct)
        documents = np.repeat(np.arange(known, len(self._lengths), dtype=np.int32), self._distinct)
        codes = self._code(np.array(self._counts, dtype=np.int64), np.array(self._lengths[known:]), self._distinct)
        order = np.argsort(terms, kind="stable")
        terms = terms[order]
        starts = _starts(terms)
        start = self._runs[-1].start + int(self._runs[-1].ends[-1]) if self._runs else 0
        self._runs.append(_Run(start, terms[starts], np.append(starts, len(terms)).astype(np.int32)))
        self._spill.write(np.stack([documents[order], codes[order]], axis=1).tobytes())
        for column in (self._distinct, self._terms, self._counts):
            del column[:]

    def _code(self, counts: np.ndarray, lengths: np.ndarray, distinct: array[int]) -> np.ndarray:
        """Numbers for the pairs (count, length as coded): few of them, and all that a score hangs on."""
        pairs = (counts << 32) | np.repeat(_coded(lengths), distinct)
        order = np.argsort(pairs)
        pairs = pairs[order]
        starts = _starts(pairs)
        found = [self._codes.setdefault(pair, len(self._codes)) for pair in pairs[starts].tolist()]
        codes = np.empty(len(pairs), dtype=np.int32)
        codes[order] = np.repeat(found, np.diff(np.append(starts, len(pairs))))
        return codes

    def _merge(self, offsets: np.ndarray, rank: np.ndarray) -> None:
        """Write the postings of all runs, in the order of their terms' ids and then of ranks."""
        total = int(offsets[-1])
        ranks = ArrayWriter(self._folder / "posting_ranks.npy", np.dtype(np.int32), total)
        codes = ArrayWriter(self._folder / "posting_codes.npy", np.min_scalar_type(max(len(self._codes) - 1, 0)), total)
        # As many whole terms at a time as make a block, at least one.
        marks = np.arange(0, total + self._block, self._block).clip(max=total)
        for first, last in pairwise(sorted(set(np.searchsorted(offsets, marks).tolist()))):
            parts = list(self._between(first, last))
            terms = np.concatenate([term for term, _ in parts])
            postings = np.concatenate([posting for _, posting in parts])
            places = rank[postings[:, 0]]
            order = np.argsort((terms.astype(np.int64) << 32) | places)
            ranks.add(places[order])
            codes.add(postings[order, 1])
        ranks.finish()
        codes.finish()

    def _between(self, first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each run the postings of the terms from ``first`` to before ``last``, and their terms."""
        for run in self._runs:
            low, high = np.searchsorted(run.terms, [first, last])
            start, end = int(run.ends[low]), int(run.ends[high])
            self._spill.seek((run.start + start) * 8)
            postings = np.frombuffer(self._spill.read((end - start) * 8), dtype=np.int32).reshape(-1, 2)
            yield np.repeat(run.terms[low:high], np.diff(run.ends[low : high + 1])), postings


def _starts(ascending: np.ndarray) -> np.ndarray:
    """Where each new value begins."""
    # Not np.unique, which imports numpy.ma; that takes as long as packing a small catalogue.
    return np.flatnonzero(np.concatenate([np.ones(len(ascending[:1]), dtype=bool), ascending[1:] != ascending[:-1]]))


def _coded(lengths: np.ndarray) -> np.ndarray:
    """Lengths of documents as they survive Lucene's one-byte code.

    They are exact up to 39; above that, the part beyond 24 keeps its four highest bits.
    """
    beyond = np.maximum(lengths - _EXACT_LENGTHS, 0)
    shift = np.maximum(np.floor(np.log2(np.maximum(beyond, 1))).astype(np.int64) - 3, 0)
    return np.where(lengths < _EXACT_LENGTHS, lengths, _EXACT_LENGTHS + (beyond >> shift << shift)).astype(np.int64)


def _saturation(pairs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """1 + count / (k1 (1 - b + b L / average)) for each pair (count, coded length L), float32."""
    average = np.float32(lengths.sum() / max(np.count_nonzero(lengths), 1)) or np.float32(1)
    counts, coded = (pairs >> 32).astype(np.float32), (pairs & 0xFFFFFFFF).astype(np.float32)
    inverse = np.float32(1) / (K1 * ((np.float32(1) - B) + B * coded / average))
    return np.float32(1) + counts * inverse
