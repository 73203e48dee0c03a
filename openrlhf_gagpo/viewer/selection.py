"""Which episodes a list shows: filters, order and pages, as they stand in an address."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from urllib.parse import urlencode

from openrlhf_gagpo.viewer.facts import EpisodeFacts

__all__ = ["PAGE", "Page", "Selection"]

PAGE = 50
"""Episodes on one page."""

_RANGE = re.compile(r"\s*(\d+)?\s*(-)?\s*(\d+)?\s*")

_ORDERS: Mapping[str, Callable[[EpisodeFacts], tuple[float, ...]]] = {
    "newest": lambda e: (-e.part, e.number),
    "oldest": lambda e: (e.part, e.number),
    "longest": lambda e: (-e.steps, -e.part, e.number),
    "shortest": lambda e: (e.steps, -e.part, e.number),
    "best": lambda e: (-e.episode_return, -e.score, -e.part, e.number),
    "worst": lambda e: (e.episode_return, e.score, -e.part, e.number),
    "malformed": lambda e: (-e.malformed, -e.part, e.number),
}


@dataclass(frozen=True)
class Page:
    """One page of a selection."""

    episodes: Sequence[EpisodeFacts]
    total: int
    number: int
    """From 1."""
    pages: int


@dataclass(frozen=True)
class Selection:
    """Filters as the user wrote them; an empty one filters nothing."""

    text: str = ""
    """Part of the task, group or trajectory, in any letter case."""
    category: str = ""
    outcome: str = ""
    iteration: str = ""
    """One number or a range: "3", "2-5", "2-"."""
    length: str = ""
    """Steps, in the same form."""
    malformed: str = ""
    """ "yes" or "no"."""
    fault: str = ""
    """ "yes" or "no"."""
    order: str = "newest"
    page: str = "1"

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Selection:
        """Read the selection of an address; what it does not know is passed over."""
        return cls(**{field.name: query[field.name].strip() for field in fields(cls) if query.get(field.name)})

    @property
    def active(self) -> bool:
        """Whether any filter is set."""
        return any(getattr(self, field.name) for field in fields(self) if field.name not in ("order", "page"))

    @staticmethod
    def orders() -> Sequence[str]:
        """Return the names of all orders."""
        return tuple(_ORDERS)

    def query(self, **changes: object) -> str:
        """Return the address's query of this selection, with some fields changed."""
        default = Selection()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: str(value) for name, value in changes.items()}
        return urlencode({name: value for name, value in values.items() if value != getattr(default, name)})

    def sift(self, episodes: Sequence[EpisodeFacts]) -> list[EpisodeFacts]:
        """Return the episodes that pass all filters, in the chosen order."""
        tests = self._tests()
        kept = [episode for episode in episodes if all(test(episode) for test in tests)]
        return sorted(kept, key=_ORDERS.get(self.order, _ORDERS["newest"]))

    def cut(self, kept: Sequence[EpisodeFacts]) -> Page:
        """Return the chosen page of what ``sift`` kept."""
        pages = max(1, -(-len(kept) // PAGE))
        number = min(max(int(self.page), 1), pages) if self.page.isascii() and self.page.isdigit() else 1
        return Page(kept[(number - 1) * PAGE : number * PAGE], len(kept), number, pages)

    def _tests(self) -> list[Callable[[EpisodeFacts], bool]]:
        tests: list[Callable[[EpisodeFacts], bool]] = []
        if self.text:
            words = self.text.lower()
            tests.append(lambda e: words in f"{e.task}\n{e.group}\n{e.trajectory}".lower())
        if self.category:
            tests.append(lambda e: e.category == self.category)
        if self.outcome:
            tests.append(lambda e: e.outcome == self.outcome)
        if inside := _inside(self.iteration):
            tests.append(lambda e: inside(e.part))
        if of_length := _inside(self.length):
            tests.append(lambda e: of_length(e.steps))
        if self.malformed:
            tests.append(lambda e: bool(e.malformed) == (self.malformed == "yes"))
        if self.fault:
            tests.append(lambda e: (e.outcome == "fault") == (self.fault == "yes"))
        return tests


def _inside(text: str) -> Callable[[int], bool] | None:
    """Return a test for a range; None if ``text`` is none, so that half-typed ranges filter nothing."""
    match = _RANGE.fullmatch(text)
    if match is None or match[1] is match[3] is None:
        return None
    first = int(match[1] or 0)
    last = int(match[3]) if match[3] else (None if match[2] else first)
    return lambda n: first <= n and (last is None or n <= last)
