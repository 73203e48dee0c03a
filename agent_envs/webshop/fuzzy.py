"""Approximate comparison of texts: thefuzz 0.19's ``token_set_ratio`` on Python's difflib, and colour names.

Rewards depend on the way difflib matches, which faster libraries do not reproduce.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from functools import lru_cache

__all__ = ["canonical_colour", "token_set_ratio"]

COLOURS = (  # noqa: SIM905  one word per line would bury the order
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo "
    "caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream "
    "crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather "
    "indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha "
    "multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal "
    "rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise "
    "violet walnut wheat white wine yellow"
).split()
"""In the order in which they are looked for; the first one found counts."""

_DROPPED = re.compile("[\u0080-\u00ff]")
_NO_WORD = re.compile(r"\W")


def canonical_colour(value: str | tuple[str, str]) -> str | tuple[str, str]:
    """Return the first colour whose name occurs in ``value``, else ``value``.

    The name may be part of a word ("infrared" is red). In a (name, value) pair a whole element must be a colour.
    """
    return next((colour for colour in COLOURS if colour in value), value)


@lru_cache(maxsize=1 << 15)
def token_set_ratio(one: str, other: str) -> int:
    """Return the similarity of the two sets of words, 0 to 100; 100 if one contains the other. Order matters."""
    first, second = _clean(one), _clean(other)
    if not first or not second:
        return 0
    left, right = set(first.split()), set(second.split())
    common = " ".join(sorted(left & right))
    longer = f"{common} {' '.join(sorted(left - right))}".strip()
    other_longer = f"{common} {' '.join(sorted(right - left))}".strip()
    return max(_ratio(common, longer), _ratio(common, other_longer), _ratio(longer, other_longer))


def _clean(text: str) -> str:
    return _NO_WORD.sub(" ", _DROPPED.sub("", text)).lower().strip()


def _ratio(one: str, other: str) -> int:
    if one == other:
        return 100
    if not one or not other:
        return 0
    return round(100 * SequenceMatcher(None, one, other).ratio())
