"""A made-up world: persons, works, towns and organisations, and the facts about them.

Facts stay inside a split: no entity of one split is the subject or the object of a fact about another split's, so
nothing that supports a test question supports a training question. Splits share countries, years and parts of names.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from agent_envs.search_qa.levels import SPLITS, Level
from agent_envs.search_qa.names import COUNTRIES, GENRES, OCCUPATIONS, NameMaker
from agent_envs.search_qa.relations import ENTITY_KINDS

__all__ = ["YEARS", "Entity", "Term", "World", "make_world"]

YEARS = range(1850, 1950)
_SHARES = (0.6, 0.15)
"""Of the entities, for training and validation; the rest is for the test."""
_MOTHERS = 0.85
_MOTHER_AGE = 16
_TERMS = 3


@dataclass(frozen=True)
class Entity:
    """Something that has an article."""

    name: str
    """Unique in the world, whatever the kind."""
    kind: str
    split: str
    alias: str = ""
    """Another name that means this entity and no other; "" if there is none."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then the alias if there is one."""
        return (self.name, self.alias) if self.alias else (self.name,)


class Term(NamedTuple):
    """Years in office of a mayor; both are included."""

    first: int
    last: int
    person: str


@dataclass(frozen=True)
class World:
    """Entities and facts."""

    entities: Mapping[str, Entity]
    """Name -> entity."""
    facts: Mapping[str, Mapping[str, str]]
    """Subject -> relation -> object (a name, or a year, country, genre or occupation)."""
    mayors: Mapping[str, Sequence[Term]] = field(default_factory=dict)
    """Town -> its mayors; their terms cover all years."""

    def members(self, split: str, kind: str) -> Sequence[str]:
        """Return the names of a split's entities of a kind."""
        return self._members[split, kind]

    def subjects(self, relation: str, value: str) -> frozenset[str]:
        """Return the entities whose ``relation`` is ``value``."""
        return self._subjects.get((relation, value), frozenset())

    @cached_property
    def _members(self) -> Mapping[tuple[str, str], Sequence[str]]:
        members: dict[tuple[str, str], list[str]] = {(split, kind): [] for split in SPLITS for kind in ENTITY_KINDS}
        for entity in self.entities.values():
            members[entity.split, entity.kind].append(entity.name)
        return members

    @cached_property
    def _subjects(self) -> Mapping[tuple[str, str], frozenset[str]]:
        subjects = defaultdict(set)
        for subject, facts in self.facts.items():
            for fact in facts.items():
                subjects[fact].add(subject)
        return {fact: frozenset(names) for fact, names in subjects.items()}


def make_world(level: Level, seed: int) -> World:
    """Draw the world of a level; equal arguments give equal worlds."""
    rng = random.Random(f"search_qa/world/{seed}")
    third = level.scale // 3
    maker = NameMaker(rng)
    persons = maker.persons(level.scale)
    initials = Counter(f"{given[0]}. {family}" for given, family in persons)
    organisations = maker.organisations(third)
    firms = Counter(name for name, _ in organisations)
    named = {
        "person": [(f"{given} {family}", f"{given[0]}. {family}") for given, family in persons],
        "work": [(" ".join(words), f"The {' '.join(words)}") for words in maker.works(level.scale)],
        "town": [(" ".join(words), f"City of {' '.join(words)}") for words in maker.towns(third)],
        "organisation": [(" ".join(words), words[0]) for words in organisations],
    }
    entities = [
        Entity(name, kind, split, alias if initials[alias] < 2 and firms[alias] < 2 else "")
        for kind, names in named.items()
        for (name, alias), split in zip(names, _splits(len(names)), strict=True)
    ]
    world = World({entity.name: entity for entity in entities}, {})
    facts: dict[str, dict[str, str]] = {entity.name: {} for entity in entities}
    mayors: dict[str, Sequence[Term]] = {}
    for split in SPLITS:
        for name, known in _facts_of_split(world, split, rng):
            facts[name] = {relation: value for relation, value in known.items() if relation in level.relations}
        for town in world.members(split, "town") if level.mayors else ():
            mayors[town] = _terms(world.members(split, "person"), rng)
    return World(world.entities, facts, mayors)


def _splits(count: int) -> list[str]:
    train, valid = (round(share * count) for share in _SHARES)
    return ["train"] * train + ["valid"] * valid + ["test"] * (count - train - valid)


def _facts_of_split(world: World, split: str, rng: random.Random) -> Iterable[tuple[str, dict[str, str]]]:
    persons, works, towns, organisations = (world.members(split, kind) for kind in ENTITY_KINDS)
    # Persons are listed from the oldest to the youngest, so that mothers come before their children.
    births = sorted(rng.choice(YEARS) for _ in persons)
    for place, (person, born) in enumerate(zip(persons, births, strict=True)):
        known = {
            "birthplace": rng.choice(towns),
            "birth year": str(born),
            "employer": rng.choice(organisations),
            "occupation": rng.choice(OCCUPATIONS),
        }
        older = [other for other, year in zip(persons[:place], births, strict=False) if year + _MOTHER_AGE <= born]
        if older and rng.random() < _MOTHERS:
            known["mother"] = rng.choice(older)
        yield person, known
    for work in works:
        yield (
            work,
            {
                "author": rng.choice(persons),
                "publication year": str(rng.choice(YEARS)),
                "genre": rng.choice(GENRES),
            },
        )
    for organisation in organisations:
        yield (
            organisation,
            {
                "seat": rng.choice(towns),
                "founder": rng.choice(persons),
                "founding year": str(rng.choice(YEARS)),
            },
        )
    for town in towns:
        yield town, {"country": rng.choice(COUNTRIES)}


def _terms(persons: Sequence[str], rng: random.Random) -> list[Term]:
    starts = [YEARS[0], *sorted(rng.sample(YEARS[10:-10:5], _TERMS - 1))]
    ends = [*(start - 1 for start in starts[1:]), YEARS[-1]]
    return [Term(*term) for term in zip(starts, ends, rng.sample(persons, _TERMS), strict=True)]
