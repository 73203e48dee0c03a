"""BM25 written out, as a search over small corpora that needs no engine."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["plain_engine", "plain_search"]


def plain_engine(corpus: Path, out: Path) -> Callable[[Sequence[str], int], list[list[str]]]:
    """Search a corpus file; stands in for an index, of which a file in the folder ``out`` is left."""
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    out.mkdir()
    (out / "passages").write_text(str(len(rows)))
    return plain_search({row["id"]: row["contents"] for row in rows})


def plain_search(
    texts: Mapping[str, str], k1: float = 0.9, b: float = 0.4
) -> Callable[[Sequence[str], int], list[list[str]]]:
    """Return a function from queries to the ids of the best texts."""
    names = list(texts)
    documents = [Counter(_words(text)) for text in texts.values()]
    lengths = np.array([words.total() for words in documents])
    scales = k1 * (1 - b + b * lengths / lengths.mean())
    found: dict[str, list[int]] = {}
    for number, words in enumerate(documents):
        for word in words:
            found.setdefault(word, []).append(number)
    postings = {}
    for word, numbers in found.items():
        counts = np.array([documents[number][word] for number in numbers])
        weight = math.log(1 + (len(names) - len(numbers) + 0.5) / (len(numbers) + 0.5))
        postings[word] = (numbers, weight * counts * (k1 + 1) / (counts + scales[numbers]))

    def find(query: str, topk: int) -> list[str]:
        scores = np.zeros(len(names))
        for word in sorted(set(_words(query)) & postings.keys()):
            numbers, shares = postings[word]
            scores[numbers] += shares
        best = np.argsort(-scores, kind="stable")[:topk]
        return [names[number] for number in best if scores[number] > 0]

    return lambda queries, topk: [find(query, topk) for query in queries]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
