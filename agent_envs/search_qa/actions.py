"""Reading of actions, the text of passages, and the metrics of answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

__all__ = [
    "METRICS",
    "TAGS",
    "Action",
    "cover",
    "exact_match",
    "normalise",
    "passage_line",
    "read_action",
    "shorten",
    "show_passages",
    "title_and_text",
    "word_f1",
]

Kind = Literal["search", "answer"]

TAGS: tuple[Kind, Kind] = ("search", "answer")
MAX_QUERY_CHARS = 256
MAX_ANSWER_CHARS = 200

_TAG = re.compile(r"<(/?)(search|answer)>", re.IGNORECASE | re.ASCII)
_PLAIN = re.compile(r"(search|answer)(?: ?:| )(.*)", re.IGNORECASE | re.ASCII)
_LIMITS: Mapping[Kind, int] = MappingProxyType({"search": MAX_QUERY_CHARS, "answer": MAX_ANSWER_CHARS})

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Action(NamedTuple):
    """What the agent does, in words on one line."""

    kind: Kind
    words: str


def read_action(text: str) -> Action | None:
    """Read an action; None if there is none or it has no words. The time is linear in the length of ``text``.

    The first tagged pair to be completed counts, whatever follows it; only without one is ``search WORDS`` or
    ``answer: WORDS`` read, from the start of the text. White space is squeezed, and what is too long is cut.
    """
    pair = _first_pair(text)
    if pair is None:
        plain = _PLAIN.fullmatch(_squeezed(text))
        pair = (plain[1], plain[2]) if plain else ("", "")
    name, content = pair
    for kind in TAGS:
        if name.lower() == kind:
            # A lone surrogate cannot be sent or searched for.
            words = _squeezed(content).encode("utf-8", "replace").decode()[: _LIMITS[kind]].strip()
            return Action(kind, words) if words else None
    return None


def _first_pair(text: str) -> tuple[str, str] | None:
    """Return name and content of the pair whose closing tag comes first; it begins at the first opening tag."""
    opened: dict[str, int] = {}
    for tag in _TAG.finditer(text):
        name = tag[2].lower()
        if not tag[1]:
            opened.setdefault(name, tag.end())
        elif name in opened:
            return name, text[opened[name] : tag.start()]
    return None


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def title_and_text(contents: str) -> tuple[str, str]:
    """Split a passage into its first line, without the quotes around it, and the squeezed rest."""
    title, _, text = contents.partition("\n")
    title = title.strip()
    if len(title) > 1 and title.startswith('"') and title.endswith('"'):
        title = title[1:-1]
    return title, _squeezed(text)


def passage_line(contents: str, number: int, words: int | None = None) -> str:
    """Word a passage on one line, with at most ``words`` words of its text. ``number`` is its place, from 1."""
    title, text = title_and_text(contents)
    if words is not None:
        text = " ".join(text.split()[:words])
    return f"Doc {number}(Title: {title}) {text}"


def show_passages(passages: Sequence[str], words: int, chars: int) -> str:
    """Word search results, one a line and all together at most ``chars`` characters long."""
    lines = (passage_line(contents, number, words) for number, contents in enumerate(passages, start=1))
    return shorten("\n".join(lines), chars)


def shorten(text: str, chars: int) -> str:
    """Cut ``text`` to at most ``chars`` characters, at the end of a word if there is one."""
    if len(text) <= chars:
        return text
    end = max(text.rfind(" ", 0, chars + 1), text.rfind("\n", 0, chars + 1))
    return text[: end if end > 0 else chars].rstrip()


def normalise(text: str) -> str:
    """Lower the case, drop ASCII punctuation, then the words a, an and the, then squeeze white space.

    This is the normal form of the metrics of SQuAD (Rajpurkar et al., arXiv 1606.05250).
    """
    return _squeezed(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)))


def exact_match(answer: str, golden: Sequence[str]) -> float:
    """Return 1 if the normal form of ``answer`` is that of a golden answer, else 0."""
    given = normalise(answer)
    return float(any(given == normalise(gold) for gold in golden))


def cover(answer: str, golden: Sequence[str]) -> float:
    """Return 1 if the normal form of ``answer`` contains that of a golden answer, unless that is empty; else 0."""
    given = normalise(answer)
    return float(any(form in given for form in map(normalise, golden) if form))


def word_f1(answer: str, golden: Sequence[str]) -> float:
    """Return the best F1 over the counted words of the normal forms; two empty forms agree."""
    return max((_f1(normalise(answer).split(), normalise(gold).split()) for gold in golden), default=0.0)


def _f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = MappingProxyType(
    {"em": exact_match, "f1": word_f1, "cover": cover}
)
