"""BM25 search that ranks as Lucene 8 does through Anserini 0.14 (k1 0.9, b 0.4, one byte per document length).

Scores are computed in the same precision and order as there, because ties are broken by product id.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from agent_envs.webshop.store import Blob, BlobWriter
from agent_envs.webshop.text import analyze

__all__ = ["Index", "IndexBuilder", "QueryTooLong"]

K1 = np.float32(0.9)
B = np.float32(0.4)
MAX_CLAUSES = 1024
"""Distinct terms that one query may have."""

_TERMS = "terms.bin"
_EXACT_LENGTHS = 24
_CACHED_QUERIES = 4096


class QueryTooLong(ValueError):
    """A query with more than ``MAX_CLAUSES`` distinct terms."""


class IndexBuilder:
    """Takes documents one by one; ``finish`` gives the arrays of an ``Index``."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._term = array("i")
        self._document = array("i")
        self._count = array("i")
        self._length = array("i")

    def add(self, text: str) -> None:
        """Append the next document."""
        terms = analyze(text)
        document = len(self._length)
        self._length.append(len(terms))
        ids = self._ids
        for term, count in Counter(terms).items():
            self._term.append(ids.setdefault(term, len(ids)))
            self._document.append(document)
            self._count.append(count)

    def finish(self, rank: np.ndarray, folder: Path) -> dict[str, np.ndarray]:
        """Arrays of the index; the term list goes to ``folder``.

        Args:
            rank: for each document, in the order added, its place among all product ids in ascending order. Postings
                name documents by it, so that equal scores are in the right order without looking at ids.
            folder: where ``Index`` will find the term list.
        """
        lengths = np.array(self._length, dtype=np.int64)
        terms = sorted(self._ids, key=_key)
        # Ids were given in the order seen; postings are to follow the sorted list.
        place = np.empty(len(terms), dtype=np.int64)
        place[[self._ids[term] for term in terms]] = np.arange(len(terms))
        writer = BlobWriter(folder / _TERMS)
        for term in terms:
            writer.add(_key(term))
        documents = np.array(self._document, dtype=np.int64)
        by_term = place[np.array(self._term, dtype=np.int64)]
        order = np.argsort((by_term << 32) | rank[documents], kind="stable")
        frequencies = np.bincount(by_term, minlength=len(terms))
        inverse = _inverse_norms(lengths)
        saturation = np.float32(1) + np.array(self._count, dtype=np.float32) * inverse[documents]
        return {
            "term_offsets": writer.finish(),
            "posting_offsets": np.concatenate([[0], np.cumsum(frequencies)]).astype(np.int64),
            "posting_ranks": rank[documents][order].astype(np.int32),
            "posting_saturation": saturation[order],
            "indexed": np.array([len(lengths), np.count_nonzero(lengths)], dtype=np.int64),
        }


class Index:
    """Answers queries with product ranks (places among all product ids in ascending order)."""

    def __init__(self, arrays: Mapping[str, np.ndarray], folder: Path) -> None:
        self._terms = Blob(folder / _TERMS, arrays["term_offsets"])
        self._offsets = arrays["posting_offsets"]
        self._ranks = arrays["posting_ranks"]
        self._saturation = arrays["posting_saturation"]
        self._size, self._documents = (int(value) for value in arrays["indexed"])
        self._postings = lru_cache(maxsize=1 << 15)(self._find)
        self._answer = lru_cache(maxsize=_CACHED_QUERIES)(self._search)

    def search(self, query: str, limit: int) -> tuple[int, ...]:
        """The best ``limit`` documents with any term of ``query``, best first, equal scores by rank.

        Raises:
            QueryTooLong: it has more distinct terms than Lucene takes.
        """
        return self._answer(query, limit)

    def _search(self, query: str, limit: int) -> tuple[int, ...]:
        terms = Counter(analyze(query))
        if len(terms) > MAX_CLAUSES:
            raise QueryTooLong(f"the query has {len(terms)} different terms, but {MAX_CLAUSES} is the most")
        ranks, parts = [], []
        for term, count in terms.items():
            posting = self._postings(term)
            if posting is None:
                continue
            start, end, idf = posting
            weight = np.float32(count) * idf
            ranks.append(self._ranks[start:end])
            parts.append(weight - weight / self._saturation[start:end])
        if not ranks:
            return ()
        # Sums in double precision, scores in single: as Lucene's scorer for alternatives.
        scores = np.bincount(np.concatenate(ranks), np.concatenate(parts), minlength=self._size).astype(np.float32)
        hits = np.flatnonzero(scores)
        if len(hits) > limit:
            least = np.partition(scores[hits], len(hits) - limit)[len(hits) - limit]
            hits = hits[scores[hits] >= least]
        best = hits[np.argsort(-scores[hits], kind="stable")[:limit]]
        return tuple(best.tolist())

    def _find(self, term: str) -> tuple[int, int, np.float32] | None:
        """Where the postings of ``term`` are, and its inverse document frequency."""
        key = _key(term)
        number = bisect_left(range(len(self._terms)), key, key=self._terms.__getitem__)
        if number == len(self._terms) or self._terms[number] != key:
            return None
        start, end = int(self._offsets[number]), int(self._offsets[number + 1])
        frequency = end - start
        return start, end, np.float32(np.log(1 + (self._documents - frequency + 0.5) / (frequency + 0.5)))


def _key(term: str) -> bytes:
    return term.encode("utf-8", "surrogatepass")


def _inverse_norms(lengths: np.ndarray) -> np.ndarray:
    """1 / (k1 (1 - b + b L / average)) per document, float32, L as it survives Lucene's one-byte code.

    Lengths are exact up to 39; above that, the part beyond 24 keeps its four highest bits.
    """
    beyond = np.maximum(lengths - _EXACT_LENGTHS, 0)
    shift = np.maximum(np.floor(np.log2(np.maximum(beyond, 1))).astype(np.int64) - 3, 0)
    coded = np.where(lengths < _EXACT_LENGTHS, lengths, _EXACT_LENGTHS + (beyond >> shift << shift))
    average = np.float32(lengths.sum() / max(np.count_nonzero(lengths), 1)) or np.float32(1)
    return np.float32(1) / (K1 * ((np.float32(1) - B) + B * coded.astype(np.float32) / average))
