"""What a generated world says about its entities: the kinds of entity, and functional relations between them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["ENTITY_KINDS", "MAYOR", "RELATIONS", "Relation", "relation_paths"]

ENTITY_KINDS = ("person", "work", "town", "organisation")
"""Kinds of things that have an article; years, countries, genres and occupations have none."""
MAYOR = "mayor"
"""Relation of a town, a year and a person; it is not one of ``RELATIONS``, which have one object per subject."""


class Relation(NamedTuple):
    """A relation with at most one object per subject."""

    subject: str
    object: str


RELATIONS: Mapping[str, Relation] = MappingProxyType(
    {
        "author": Relation("work", "person"),
        "publication year": Relation("work", "year"),
        "genre": Relation("work", "genre"),
        "birthplace": Relation("person", "town"),
        "birth year": Relation("person", "year"),
        "mother": Relation("person", "person"),
        "employer": Relation("person", "organisation"),
        "occupation": Relation("person", "occupation"),
        "seat": Relation("organisation", "town"),
        "founder": Relation("organisation", "person"),
        "founding year": Relation("organisation", "year"),
        "country": Relation("town", "country"),
    }
)
"""Noun that names the relation -> its kinds."""


@cache
def relation_paths(kinds: tuple[str, ...], length: int, allowed: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return every sequence of ``length`` relations that begins at one of ``kinds`` and can be followed."""
    if length == 0:
        return ((),)
    return tuple(
        (name, *rest)
        for name in allowed
        if RELATIONS[name].subject in kinds
        for rest in relation_paths((RELATIONS[name].object,), length - 1, allowed)
    )
