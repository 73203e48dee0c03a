"""Shopping goals: what is wanted and up to which price, from people's or from synthetic instructions.

A goal book holds numbers only; a goal is put together when asked for, because the full catalogue has millions.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agent_envs.webshop.catalogue import Catalogue
from agent_envs.webshop.products import CatalogueError

__all__ = ["Goal", "GoalBook", "GoalKind", "compatible_book", "seedless_book"]

GoalKind = Literal["human", "synthetic"]

NO_PRICE_LIMIT = 1_000_000.0
"""US dollars."""
_PRICE_STEPS = range(10, 1000, 10)
_MAX_GOALS = 50_000_000


@dataclass(frozen=True)
class Goal:
    """One shopping task."""

    asin: str
    """The product it was made from; buying another one may be as good."""
    category: str
    query: str
    name: str
    product_category: str
    instruction_text: str
    attributes: tuple[str, ...]
    price_upper: float
    """US dollars."""
    goal_options: Mapping[str, str] | tuple[str, ...]
    """Values by option name (synthetic), or values only (human)."""
    number: int
    """Number of the product in its catalogue."""


class GoalBook(Sequence[Goal]):
    """Goals in a fixed order, and the prices that products have in this world.

    Args:
        catalogue: the products.
        kind: which instructions.
        prices: price per product, US dollars.
        bounds: highest price per instruction, in the order of products and of their instructions.
        order: numbers of goals in catalogue order, in this book's order.
    """

    def __init__(
        self, catalogue: Catalogue, kind: GoalKind, prices: np.ndarray, bounds: np.ndarray, order: np.ndarray
    ) -> None:
        self.catalogue = catalogue
        self.kind: GoalKind = kind
        self.prices = prices
        self._bounds = bounds
        self._order = order
        self._ends = np.cumsum(goal_counts(catalogue, kind))
        self._bound_ends = np.cumsum(instruction_counts(catalogue, kind))
        self._cumulative: list[float] | None = None

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Goal:  # type: ignore[override]
        number, slot = self._locate(int(self._order[index]))
        product = self.catalogue.product(number)
        first_bound = int(self._bound_ends[number - 1]) if number else 0
        if self.kind == "human":
            bound = float(self._bounds[first_bound + slot])
            asked = product.instructions[slot]
            text, attributes = asked.text.strip("."), asked.attributes
            options: Mapping[str, str] | tuple[str, ...] = asked.options
        else:
            bound = float(self._bounds[first_bound])
            text, attributes = product.instruction or "", product.instruction_attributes
            options = _combination(product.options, slot)
            if options:
                text += " with " + ", and ".join(f"{name}: {value}" for name, value in options.items())
        if bound != NO_PRICE_LIMIT:
            text += f", and price lower than {bound:.2f} dollars"
        return Goal(
            asin=product.asin,
            category=product.category,
            query=product.query,
            name=product.title,
            product_category=product.product_category,
            instruction_text=text,
            attributes=attributes,
            price_upper=bound,
            goal_options=options,
            number=number,
        )

    def weights(self) -> np.ndarray:
        """Weight of each goal in ``sample``: 1 for human goals; for synthetic ones rare attributes weigh more."""
        if self.kind == "human":
            return np.ones(len(self))
        goals_with: Counter[str] = Counter()
        counts = goal_counts(self.catalogue, self.kind)
        attributes = {}
        for number in np.flatnonzero(counts).tolist():
            attributes[number] = self.catalogue.product(number).instruction_attributes
            for attribute in attributes[number]:
                goals_with[attribute] += int(counts[number])
        of_product = np.zeros(len(self.catalogue))
        for number, names in attributes.items():
            of_product[number] = sum(1.0 / goals_with[name] for name in names) / len(names)
        return of_product[np.searchsorted(self._ends, self._order, side="right")]

    def sample(self, rng: random.Random) -> int:
        """Index of a random goal, as the original program draws it: never the first one, the last one twice as often.

        One ``uniform`` is drawn from ``rng``.
        """
        if self._cumulative is None:
            self._cumulative = [0.0, *np.cumsum(self.weights()).tolist()]
        return min(bisect_right(self._cumulative, rng.uniform(0, self._cumulative[-1])), len(self) - 1)

    def _locate(self, goal: int) -> tuple[int, int]:
        """Product number, and number of the goal among those of the product."""
        number = int(np.searchsorted(self._ends, goal, side="right"))
        return number, goal - (int(self._ends[number - 1]) if number else 0)


def compatible_book(catalogue: Catalogue, kind: GoalKind, draws: random.Random, shuffle_seed: int) -> GoalBook:
    """Goals as the original program makes them: prices, bounds and order come from random numbers.

    ``draws`` gives first the prices, then the bounds; it is then seeded with ``shuffle_seed`` for the order.

    Raises:
        CatalogueError: there are no goals of this kind, or too many.
    """
    _check_count(catalogue, kind)
    prices = catalogue.low[: len(catalogue)].copy()
    for number in np.flatnonzero(~np.isnan(catalogue.high[: len(catalogue)])).tolist():
        prices[number] = draws.uniform(float(catalogue.low[number]), float(catalogue.high[number]))
    per_product = instruction_counts(catalogue, kind)
    asked = np.repeat(np.arange(len(catalogue)), per_product)
    bounds = np.array([_draw_bound(price, draws) for price in prices[asked].tolist()])
    # Not a list: the full catalogue has millions of goals.
    order = array("i", range(int(goal_counts(catalogue, kind).sum())))
    draws.seed(shuffle_seed)
    draws.shuffle(order)
    return GoalBook(catalogue, kind, prices, bounds, np.array(order))


def seedless_book(catalogue: Catalogue, kind: GoalKind) -> tuple[GoalBook, dict[str, np.ndarray]]:
    """Goals that depend on the catalogue alone, and the indexes of each split.

    Everything about a product is drawn from its id: price, bounds and split (eight tenths train, one tenth each
    valid and test), so all goals of a product are in one split and other products change nothing.

    Raises:
        CatalogueError: there are no goals of this kind, or too many.
    """
    _check_count(catalogue, kind)
    prices = catalogue.low[: len(catalogue)].copy()
    counts, per_product = goal_counts(catalogue, kind), instruction_counts(catalogue, kind)
    bounds: list[float] = []
    keys = np.empty(len(catalogue), dtype=np.uint64)
    for number in range(len(catalogue)):
        digest = hashlib.sha256(catalogue.card(number)[0].encode("utf-8", "surrogatepass")).digest()
        keys[number] = int.from_bytes(digest[:8], "big")
        ranged = not np.isnan(catalogue.high[number])
        if not ranged and not per_product[number]:
            continue
        draws = random.Random(digest)
        if ranged:
            prices[number] = draws.uniform(float(catalogue.low[number]), float(catalogue.high[number]))
        bounds.extend(_draw_bound(float(prices[number]), draws) for _ in range(int(per_product[number])))
    product_of = np.repeat(np.arange(len(catalogue)), counts)
    slots = np.arange(len(product_of)) - np.repeat(np.cumsum(counts) - counts, counts)
    tenth = (keys % np.uint64(10))[product_of]
    # In an order without runs of one product, so that the first goals of a split are a fair sample of it.
    mixed = _mix(keys[product_of] + slots.astype(np.uint64))
    splits = {"train": tenth < 8, "valid": tenth == 8, "test": tenth == 9}
    indexes = {}
    for name, chosen in splits.items():
        goals = np.flatnonzero(chosen)
        indexes[name] = goals[np.argsort(mixed[goals], kind="stable")]
    return GoalBook(catalogue, kind, prices, np.array(bounds), np.arange(len(product_of))), indexes


def goal_counts(catalogue: Catalogue, kind: GoalKind) -> np.ndarray:
    """Goals per product."""
    counts = catalogue.people if kind == "human" else np.maximum(catalogue.variants, 0)
    return np.asarray(counts[: len(catalogue)])


def instruction_counts(catalogue: Catalogue, kind: GoalKind) -> np.ndarray:
    """Price bounds per product: one per human instruction, one for all synthetic goals of a product."""
    counts = catalogue.people if kind == "human" else (catalogue.variants >= 0).astype(np.int64)
    return np.asarray(counts[: len(catalogue)])


def _check_count(catalogue: Catalogue, kind: GoalKind) -> None:
    total = float(goal_counts(catalogue, kind).astype(np.float64).sum())
    if total == 0:
        source = "items_human_ins.json" if kind == "human" else "items_ins_v2*.json"
        raise CatalogueError(
            f"the WebShop catalogue has no {kind} goals; check that {source} belongs to its products, "
            f"or choose the other kind with human_goals"
        )
    if total > _MAX_GOALS:
        raise CatalogueError(
            f"the WebShop catalogue has {total:.0f} {kind} goals, more than {_MAX_GOALS}; lower num_products"
        )


def _draw_bound(price: float, draws: random.Random) -> float:
    """A highest price above ``price``, US dollars; the larger of two of the next four steps of ten dollars."""
    steps = [step for step in _PRICE_STEPS if step > price][:4]
    return float(max(draws.sample(steps, 2))) if len(steps) >= 2 else NO_PRICE_LIMIT


def _mix(values: np.ndarray) -> np.ndarray:
    """Scatter 64-bit numbers (finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _combination(options: Mapping[str, tuple[str, ...]], slot: int) -> dict[str, str]:
    """Choice number ``slot`` of all combinations; names sorted, the last one changes first."""
    chosen = {}
    for name in sorted(options, reverse=True):
        slot, place = divmod(slot, len(options[name]))
        chosen[name] = options[name][place]
    return dict(reversed(chosen.items()))
