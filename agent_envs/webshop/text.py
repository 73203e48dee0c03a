"""From text to index terms, as Anserini's default English analyzer over Lucene 8 does it.

Unicode word segmentation (UAX #29), possessive endings off, lower case, stop words out, Porter stems.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

from agent_envs.webshop.porter import stem

if TYPE_CHECKING:
    import regex

__all__ = ["MAX_TOKEN_CHARS", "analyze"]

MAX_TOKEN_CHARS = 255
"""Longer runs are cut into tokens of this length."""

STOP_WORDS = frozenset(
    """
    a an and are as at be but by for if in into is it no not of on or such that the their then there these they this
    to was will with
    """.split()  # noqa: SIM905  shorter than a list
)

_ATTACHED = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
_LETTER = r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]"
_BASE = r"\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{WB=Numeric}\p{WB=Katakana}"
_PICTOGRAPH = r"[\p{Emoji}--[0-9#*]]"
# Word, one ideograph or Hiragana sign, a run of South-East Asian script, or a pictograph with what is joined to it.
_TOKEN = rf"""(?x)
    (?:(?<!\p{{WB=ExtendNumLet}})\p{{WB=ExtendNumLet}}++)? [{_BASE}]
    (?:
        [{_BASE}\p{{WB=ExtendNumLet}}\p{{WB=Extend}}\p{{WB=Format}}\p{{WB=ZWJ}}]
        | (?<={_LETTER}{_ATTACHED}) [\p{{WB=MidLetter}}\p{{WB=MidNumLet}}'] {_ATTACHED} (?={_LETTER})
        | (?<=\p{{WB=Numeric}}{_ATTACHED}) [\p{{WB=MidNum}}\p{{WB=MidNumLet}}'] {_ATTACHED} (?=\p{{WB=Numeric}})
    )*+
    | [\p{{Han}}\p{{Hiragana}}] {_ATTACHED}
    | \p{{LB=SA}}++
    | {_PICTOGRAPH} {_ATTACHED} (?: \u200d {_PICTOGRAPH} {_ATTACHED} )*+
    """
_PLAIN = r"(?:(?<!_)_++)?[A-Za-z0-9](?:[A-Za-z0-9_]|(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=[0-9])[,;.'](?=[0-9]))*+"
"""The same for ASCII text, several times faster."""

_POSSESSIVE = tuple(mark + s for mark in ("'", "\u2019", "\uff07") for s in "sS")


def analyze(text: str) -> list[str]:
    """Index terms of ``text``, in order and with repeats."""
    return [term for token in _tokens(text) if (term := _term(token)) is not None]


@lru_cache(maxsize=1 << 17)
def _term(token: str) -> str | None:
    """The term of a token; None for stop words."""
    word = _lower(token[:-2] if token.endswith(_POSSESSIVE) else token)
    return None if word in STOP_WORDS else stem(word)


def _lower(token: str) -> str:
    # Java lowers character by character: no final sigma, and one letter for the dotted capital I.
    return token.lower() if token.isascii() else "".join(letter.lower()[0] for letter in token)


def _tokens(text: str) -> list[str]:
    found: list[str] = _compiled(_PLAIN if text.isascii() else _TOKEN).findall(text)
    if max(map(len, found), default=0) <= MAX_TOKEN_CHARS:
        return found
    return [token[at : at + MAX_TOKEN_CHARS] for token in found for at in range(0, len(token), MAX_TOKEN_CHARS)]


@cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    # Late: without this package the environment can still be listed, and say what it needs.
    import regex

    return regex.compile(pattern, regex.V1)
