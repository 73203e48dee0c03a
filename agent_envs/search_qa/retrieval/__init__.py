"""Retrievers: what they answer, the order of it, and a memory of recent answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

__all__ = ["Hit", "Remembering", "Retriever", "best_first"]

_KEPT = 4096


class Hit(NamedTuple):
    """A passage that was found."""

    id: str
    score: float
    contents: str


class Retriever(Protocol):
    """Finds passages. Both methods give one list per query, at most ``topk`` long, in the order of ``best_first``.

    Any query is answered, if only with an empty list. A failure is an ``EnvError``.
    """

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Find passages, and wait for them."""
        ...

    async def asearch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """Find passages; whatever waits for another process is awaited."""
        ...


def best_first(hits: Iterable[Hit]) -> list[Hit]:
    """Sort by falling score, then by id, so that the order of equal scores does not hang on the engine."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


class Remembering:
    """A retriever that keeps the answers to its latest queries, which the episodes of a group repeat."""

    def __init__(self, retriever: Retriever, kept: int = _KEPT) -> None:
        self._retriever = retriever
        self._kept = kept
        self._known: OrderedDict[tuple[str, int], list[Hit]] = OrderedDict()

    def search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        known, missing = self._recall(queries, topk)
        found = self._retriever.search(missing, topk) if missing else []
        return self._keep(queries, topk, {**known, **dict(zip(missing, found, strict=True))})

    async def asearch(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        known, missing = self._recall(queries, topk)
        found = await self._retriever.asearch(missing, topk) if missing else []
        return self._keep(queries, topk, {**known, **dict(zip(missing, found, strict=True))})

    def _recall(self, queries: Sequence[str], topk: int) -> tuple[dict[str, list[Hit]], list[str]]:
        """Return the answers that are known, and the other queries, each once."""
        known = {query: self._known[query, topk] for query in queries if (query, topk) in self._known}
        return known, [query for query in dict.fromkeys(queries) if query not in known]

    def _keep(self, queries: Sequence[str], topk: int, answers: dict[str, list[Hit]]) -> list[list[Hit]]:
        for query, hits in answers.items():
            self._known[query, topk] = hits
            self._known.move_to_end((query, topk))
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        return [answers[query] for query in queries]
