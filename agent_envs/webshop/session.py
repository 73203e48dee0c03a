"""A session in the shop, which turns a shopper's actions into pages and a reward.

Routing follows the original program, including that it looks for page names anywhere in its URLs, so that search
words can misroute a click. An action that would crash it changes nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent_envs.webshop.catalogue import Catalogue
from agent_envs.webshop.goals import Goal, GoalBook
from agent_envs.webshop.nouns import NounFinder
from agent_envs.webshop.pages import (
    BACK,
    BUY,
    NEXT,
    PREV,
    RESULTS_PER_PAGE,
    SEARCH,
    SUB_PAGES,
    Kind,
    Page,
    Piece,
    done_page,
    index_page,
    item_page,
    results_page,
    rich_text,
    segments,
    sub_page,
)
from agent_envs.webshop.products import Product
from agent_envs.webshop.reward import Breakdown, purchase_reward
from agent_envs.webshop.search import QueryTooLong

__all__ = ["ObservationMode", "Outcome", "Session", "Shop", "parse_action"]

ObservationMode = Literal["text", "text_rich", "url"]

MAX_HITS = 50
MAX_SEARCH_CHARS = 1 << 16
BASE_URL = "http://127.0.0.1:3000"
_URL_NAMES = ("search_results", "item_page", "item_sub_page", "done")
_SUB_PAGE_OF = {name.lower(): name for name in SUB_PAGES}


class _NoEffect(Exception):
    """The original program would crash here."""


@dataclass(frozen=True)
class Shop:
    """The parts that all sessions share."""

    book: GoalBook
    nouns: NounFinder
    show_attributes: bool = False

    @property
    def catalogue(self) -> Catalogue:
        return self.book.catalogue


@dataclass(frozen=True)
class Outcome:
    """Result of one action."""

    reward: float = 0.0
    """Task score of a purchase, in [0, 1]."""
    done: bool = False
    recognised: bool = False
    """Whether the action was possible; if not, nothing changed."""


def parse_action(action: str) -> tuple[str, str] | None:
    """Return name and argument of ``name[argument]``, or None if the action does not have this form.

    Only the first line counts; the argument begins after the last "[" that leaves room for one and ends before the
    last "]". Takes linear time in the length of the action.
    """
    line = action.split("\n", 1)[0]
    end = line.rfind("]")
    start = line.rfind("[", 0, max(end - 1, 0))
    return (line[:start], line[start + 1 : end]) if start > 0 else None


class Session:
    """A shopper with a goal.

    Only searches for random products ("<r>") draw from ``rng``.
    """

    def __init__(self, shop: Shop, name: str, goal: Goal, rng: random.Random) -> None:
        self._shop = shop
        self._name = name
        self._rng = rng
        self.goal = goal
        self.breakdown: Breakdown | None = None
        """How the last purchase was rewarded."""
        self.reset()

    def reset(self) -> None:
        """Go back to the start and forget what was seen and chosen; the goal stays."""
        self.keywords: list[str] | None = None
        self.page_number: int | None = None
        self.product: Product | None = None
        self.visited: set[str] = set()
        self.options: dict[str, str] = {}
        self.page: Page = index_page(self.goal.instruction_text)
        self.url = f"{BASE_URL}/{self._name}"

    def step(self, action: str) -> Outcome:
        """Take an action; one that is not possible changes nothing."""
        parsed = parse_action(action)
        if parsed is None:
            return Outcome()
        name, argument = parsed[0], parsed[1].lower()
        try:
            if name == "search":
                if len(argument) > MAX_SEARCH_CHARS:
                    return Outcome()
                self._search(argument.split(" "), 1)
                return Outcome(recognised=True)
            if name == "click" and argument in self.page.targets and argument != SEARCH.lower():
                return self._click(argument)
        except _NoEffect:
            return Outcome()
        return Outcome()

    def observation(self, mode: ObservationMode = "text") -> str:
        """Return the text of the whole current page."""
        return self.url if mode == "url" else self.show((*self.page.head, *self.page.body), mode)

    def show(self, pieces: Sequence[Piece], mode: ObservationMode) -> str:
        """Return pieces of the current page as text."""
        return segments(pieces) if mode == "text" else rich_text(pieces, self.url, self.visited)

    def find(self, keywords: Sequence[str]) -> Sequence[int]:
        """Return the numbers of the products that a search for these words lists."""
        catalogue = self._shop.catalogue
        first = keywords[0]
        if first == "<r>":
            if len(catalogue) < MAX_HITS:
                raise _NoEffect
            return self._rng.sample(range(len(catalogue)), MAX_HITS)
        if first == "<a>" or (first == "<c>" and len(keywords) < 2):
            raise _NoEffect
        if first == "<c>":
            return catalogue.labelled("category", keywords[1].strip())
        if first == "<q>":
            return catalogue.labelled("query", " ".join(keywords[1:]).strip())
        try:
            return catalogue.search(" ".join(keywords), MAX_HITS)
        except QueryTooLong:
            raise _NoEffect from None

    def _click(self, name: str) -> Outcome:
        place = self._place()
        if name == BUY.lower():
            return self._buy()
        if name == BACK.lower():
            self.reset()
        elif name == NEXT.lower() and place == "search_results":
            self._search(self._words(), self._page_number() + 1)
        elif name == PREV.lower() and place == "search_results":
            self._search(self._words(), self._page_number() - 1)
        elif name == PREV.lower() and place == "item_page":
            self._search(self._words(), self._page_number())
        elif name in _SUB_PAGE_OF:
            self._open_sub_page(_SUB_PAGE_OF[name])
        else:
            self._open_item(name)
        return Outcome(recognised=True)

    def _place(self) -> str:
        return next((name for name in _URL_NAMES if name in self.url), "")

    def _search(self, keywords: list[str], page: int) -> None:
        found = self.find(keywords)
        self.keywords, self.page_number = keywords, page
        self.product, self.options = None, {}
        shown = found[(page - 1) * RESULTS_PER_PAGE : page * RESULTS_PER_PAGE]
        cards = [self._shop.catalogue.card(number) for number in shown]
        self.page = results_page(self.goal.instruction_text, cards, page, len(found))
        self.url = f"{BASE_URL}/search_results/{self._name}/{'+'.join(keywords)}/{page}"

    def _open_item(self, name: str) -> None:
        """Open a product, choose an option, or come back from a sub page."""
        target = self.page.targets[name]
        if target.kind is Kind.LINK:
            number = self._shop.catalogue.number(name.upper())
            if number is None:
                raise _NoEffect
            self.product = self._shop.catalogue.product(number)
            self.visited.add(self.product.asin)
        elif target.kind is Kind.OPTION:
            self.options[target.option] = name
        product = self._product()
        self.page = item_page(self.goal.instruction_text, product, self._shop.show_attributes)
        self.url = self._product_url("item_page", json.dumps(self.options))

    def _open_sub_page(self, name: str) -> None:
        product = self._product()
        self.page = sub_page(self.goal.instruction_text, product, name)
        self.url = self._product_url("item_sub_page", f"{name}/{self.options}")

    def _product_url(self, place: str, rest: str) -> str:
        words = "+".join(self._words())
        return f"{BASE_URL}/{place}/{self._name}/{self._product().asin}/{words}/{self._page_number()}/{rest}"

    def _buy(self) -> Outcome:
        product = self._product()
        number = self._shop.catalogue.number(product.asin)
        if number is None:
            raise _NoEffect
        price = float(self._shop.book.prices[number])
        reward, self.breakdown = purchase_reward(product, self.goal, price, self.options, self._shop.nouns)
        self.page = done_page(product.asin, self.options, reward)
        self.url = f"{BASE_URL}/done/{self._name}/{product.asin}/{self.options}"
        return Outcome(reward, done=True, recognised=True)

    def _words(self) -> list[str]:
        if self.keywords is None:
            raise _NoEffect
        return self.keywords

    def _page_number(self) -> int:
        if self.page_number is None:
            raise _NoEffect
        return self.page_number

    def _product(self) -> Product:
        if self.product is None:
            raise _NoEffect
        return self.product
