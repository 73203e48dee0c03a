"""A noun rule of one's own, for the option ``nouns`` to name."""

from __future__ import annotations

__all__ = ["title_words"]


def title_words(title: str) -> list[str]:
    """Take every word of a title for a noun."""
    return title.lower().split()
