"""BM25 search that ranks as Lucene 8 does through Anserini 0.14 (k1 0.9, b 0.4, one byte per document length).

Scores are computed in the same precision and order as there, because ties are broken by product id.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from agent_envs.webshop.store import Blob
from agent_envs.webshop.text import analyze

__all__ = ["TERMS", "Index", "QueryTooLong", "term_key"]

MAX_CLAUSES = 1024
"""Distinct terms that one query may have."""

TERMS = "terms.bin"
_CACHED_QUERIES = 4096


class QueryTooLong(ValueError):
    """A query with more than ``MAX_CLAUSES`` distinct terms."""


class Index:
    """Answers queries with product ranks (places among all product ids in ascending order)."""

    def __init__(self, arrays: Mapping[str, np.ndarray], folder: Path) -> None:
        self._terms = Blob(folder / TERMS, arrays["term_offsets"])
        self._ids = arrays["term_ids"]
        self._offsets = arrays["posting_offsets"]
        self._ranks = arrays["posting_ranks"]
        self._codes = arrays["posting_codes"]
        self._saturation = arrays["saturation"]
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
            # Far fewer kinds of postings than postings: each kind's part is worked out once.
            parts.append((weight - weight / self._saturation).take(self._codes[start:end]))
        if not ranks:
            return ()
        # Sums in double precision, scores in single: as Lucene's scorer for alternatives.
        scores = np.bincount(np.concatenate(ranks), np.concatenate(parts), minlength=self._size).astype(np.float32)
        hits = np.flatnonzero(scores != 0)
        if len(hits) > limit:
            least = np.partition(scores[hits], len(hits) - limit)[len(hits) - limit]
            hits = hits[scores[hits] >= least]
        best = hits[np.argsort(-scores[hits], kind="stable")[:limit]]
        return tuple(best.tolist())

    def _find(self, term: str) -> tuple[int, int, np.float32] | None:
        """Where the postings of ``term`` are, and its inverse document frequency."""
        key = term_key(term)
        number = bisect_left(range(len(self._terms)), key, key=self._terms.__getitem__)
        if number == len(self._terms) or self._terms[number] != key:
            return None
        place = int(self._ids[number])
        start, end = int(self._offsets[place]), int(self._offsets[place + 1])
        frequency = end - start
        return start, end, np.float32(np.log(1 + (self._documents - frequency + 0.5) / (frequency + 0.5)))


def term_key(term: str) -> bytes:
    return term.encode("utf-8", "surrogatepass")
