"""The score of a purchase by product type, attributes, options and price, as in WebShop (arXiv 2207.01206)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypedDict

from agent_envs.webshop.fuzzy import canonical_colour, token_set_ratio
from agent_envs.webshop.goals import Goal
from agent_envs.webshop.nouns import NounFinder
from agent_envs.webshop.products import Product

__all__ = ["Breakdown", "options_met", "purchase_reward"]

_LIKE = 85
"""Texts more similar than this count as equal."""


class Breakdown(TypedDict, total=False):
    """Parts of a reward; ``r_option`` and ``w_option`` are present only if the goal asks for options."""

    r_type: float
    r_att: float
    w_att: float
    query_match: bool
    category_match: bool
    title_score: float
    r_option: float
    w_option: float
    r_price: bool
    w_price: float


def purchase_reward(
    product: Product, goal: Goal, price: float, options: Mapping[str, str], nouns: NounFinder
) -> tuple[float, Breakdown]:
    """Return the reward in [0, 1] for buying ``product`` at ``price`` US dollars with ``options``, and its parts."""
    wanted = goal.goal_options
    pairs: Collection[str | tuple[str, str]] = wanted.items() if isinstance(wanted, Mapping) else wanted
    attributes = sum(_has_attribute(product, attribute) for attribute in goal.attributes)
    chosen = options_met(list(options.values()), pairs)
    affordable = price <= goal.price_upper
    parts = len(goal.attributes) + len(wanted) + 1

    info = _type_reward(product, goal, nouns)
    info["r_att"] = attributes / len(goal.attributes) if goal.attributes else 0.0
    info["w_att"] = len(goal.attributes) / parts
    if wanted:
        info["r_option"] = chosen / len(wanted)
        info["w_option"] = len(wanted) / parts
    info["r_price"] = affordable
    info["w_price"] = 1 / parts
    return (attributes + chosen + affordable) / parts * info["r_type"], info


def _type_reward(product: Product, goal: Goal, nouns: NounFinder) -> Breakdown:
    query_match = product.query == goal.query
    category_match = len(_levels(product.product_category) & _levels(goal.product_category)) >= 2
    wanted = nouns(goal.name)
    # Repeated words count only in the denominator, so even the goal's own product may score less than 1.
    title_score = len(set(nouns(product.title)) & set(wanted)) / len(wanted) if wanted else 0.2
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    if title_score < 0.1:
        r_type = 0.1
    if title_score == 0.0:
        r_type = 0.0
    return {
        "r_type": r_type,
        "query_match": query_match,
        "category_match": category_match,
        "title_score": title_score,
    }


def _levels(product_category: str) -> set[str]:
    return {level.strip() for level in product_category.split("\u203a")}


def _has_attribute(product: Product, attribute: str) -> bool:
    return (
        any(token_set_ratio(own, attribute) > _LIKE for own in product.attributes)
        or attribute in product.title.lower()
        or attribute in " ".join(product.bullets).lower()
        or attribute in product.description.lower()
    )


def options_met(chosen: Sequence[str], wanted: Collection[str | tuple[str, str]]) -> int:
    """Count the wanted options that some chosen value satisfies; one value may satisfy several."""
    values = [str(canonical_colour(value)) for value in chosen]
    # A synthetic goal's (name, value) pair is compared as Python prints it.
    targets = [str(canonical_colour(target)) for target in wanted]
    return sum(any(token_set_ratio(value, target) > _LIKE for value in values) for target in targets)
