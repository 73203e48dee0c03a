"""Names as symbols, for models that are too small to copy names of several words."""

from __future__ import annotations

import random
import re

from agent_envs.search_qa.mentions import Mentions
from agent_envs.search_qa.questions import Question

__all__ = ["SYMBOLS", "Symbols"]

SYMBOLS = tuple(f"e{number}" for number in range(40))
_SYMBOL = re.compile(r"\be\d+\b")


class Symbols:
    """One episode's symbols: each name is given the next one of a shuffled row when it is first mentioned.

    An episode may mention more names than there are symbols; those that come too late are shown as they are.

    Args:
        mentions: the names that there are.
        order: the symbols in the order in which they are given out.
    """

    def __init__(self, mentions: Mentions, order: list[str]) -> None:
        self._mentions = mentions
        self._free = list(reversed(order))
        self._symbols: dict[str, str] = {}
        self._names: dict[str, str] = {}

    @classmethod
    def for_question(cls, question: Question, mentions: Mentions, seed: int) -> Symbols:
        """Return the symbols of an episode, in an order that depends on task and seed only.

        What the question mentions comes first and the first correct answer next: measures of what a step has revealed
        need the answer's symbol before the answer is met.
        """
        order = list(SYMBOLS)
        # The id alone would give tasks of different splits the same order.
        random.Random(f"{question.id}/{question.question}/{seed}").shuffle(order)
        symbols = cls(mentions, order)
        symbols.show(question.question)
        symbols.show(question.answers[0])
        return symbols

    def show(self, text: str) -> str:
        """Return ``text`` with symbols in place of names, whichever of a thing's names it uses."""
        return self._mentions.replace(text, self._symbol)

    def hide(self, text: str) -> str:
        """Return ``text`` with names in place of symbols; a symbol that is not in use stays as it is."""
        return _SYMBOL.sub(lambda found: self._names.get(found[0], found[0]), text)

    def _symbol(self, name: str) -> str:
        if name not in self._symbols:
            if not self._free:
                return name
            self._symbols[name] = self._free.pop()
            self._names[self._symbols[name]] = name
        return self._symbols[name]
