"""What a generated question asks, as a query over the facts: where it starts, and the relations that it follows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from agent_envs.search_qa.levels import Level, Shape
from agent_envs.search_qa.relations import ENTITY_KINDS, MAYOR, RELATIONS, relation_paths
from agent_envs.search_qa.wording import BRIDGE_HINTS, CLUES, phrase
from agent_envs.search_qa.world import YEARS, World

__all__ = ["Composition", "Reading", "draw"]

Say = Callable[[str], str]
"""Returns how a question calls an entity."""
_BORN, _PUBLISHED = "birth year", "publication year"


class Lookup(NamedTuple):
    """An article that has to be read, and queries that a searcher could type to find it, the plainest first."""

    title: str
    queries: tuple[str, ...]


class Start(Protocol):
    """How a question describes the entity that it starts from."""

    @property
    def named(self) -> tuple[str, ...]:
        """Entities that the description names."""

    def found(self, world: World) -> Sequence[str]:
        """Return all entities that fit the description."""

    def lookups(self) -> tuple[Lookup, ...]:
        """Return the articles that tell which entity it is, other than its own."""

    def own_lookup(self, name: str, relation: str) -> Lookup | None:
        """Return how to find the entity's own article for ``relation`` ("" if none is asked); None if not needed."""

    def phrase(self, say: Say) -> str:
        """Describe the entity in words."""


def _by_name(title: str, relation: str) -> Lookup:
    return Lookup(title, (title, *(f"{title} {clue}" for clue in CLUES[relation])))


@dataclass(frozen=True)
class Named:
    """The entity itself."""

    name: str

    @property
    def named(self) -> tuple[str, ...]:
        return (self.name,)

    def found(self, world: World) -> Sequence[str]:
        return self.named

    def lookups(self) -> tuple[Lookup, ...]:
        return ()

    def own_lookup(self, name: str, relation: str) -> Lookup | None:
        return _by_name(name, relation)

    def phrase(self, say: Say) -> str:
        return say(self.name)


@dataclass(frozen=True)
class Extreme:
    """The one of two entities whose year is the lower or the higher one."""

    first: str
    second: str
    relation: str
    lower: bool

    @property
    def named(self) -> tuple[str, ...]:
        return (self.first, self.second)

    def found(self, world: World) -> Sequence[str]:
        years = [int(world.facts[name][self.relation]) for name in self.named]
        best = min(years) if self.lower else max(years)
        return [name for name, year in zip(self.named, years, strict=True) if year == best]

    def other(self, name: str) -> str:
        """Return the entity that is not ``name``."""
        return self.second if name == self.first else self.first

    def lookups(self) -> tuple[Lookup, ...]:
        return tuple(_by_name(name, self.relation) for name in self.named)

    def own_lookup(self, name: str, relation: str) -> Lookup | None:
        return None

    def phrase(self, say: Say) -> str:
        words = {_BORN: ("older", "younger"), _PUBLISHED: ("earlier", "later")}[self.relation]
        return f"the {words[0] if self.lower else words[1]} of {say(self.first)} and {say(self.second)}"


@dataclass(frozen=True)
class Meeting:
    """The person who was born in a town and works for an organisation."""

    town: str
    organisation: str

    @property
    def named(self) -> tuple[str, ...]:
        return (self.town, self.organisation)

    def found(self, world: World) -> Sequence[str]:
        return sorted(world.subjects("birthplace", self.town) & world.subjects("employer", self.organisation))

    def lookups(self) -> tuple[Lookup, ...]:
        return ()

    def own_lookup(self, name: str, relation: str) -> Lookup | None:
        # The name is not known before the article is found; it is the last resort.
        return Lookup(name, (*(f"{self.town} {self.organisation}{hint}" for hint in BRIDGE_HINTS), name))

    def phrase(self, say: Say) -> str:
        return f"the person who was born in {say(self.town)} and works for {say(self.organisation)}"


@dataclass(frozen=True)
class InOffice:
    """The mayor of a town in a year."""

    town: str
    year: int

    @property
    def named(self) -> tuple[str, ...]:
        return (self.town,)

    def found(self, world: World) -> Sequence[str]:
        return [term.person for term in world.mayors[self.town] if term.first <= self.year <= term.last]

    def lookups(self) -> tuple[Lookup, ...]:
        return (_by_name(self.town, MAYOR),)

    def own_lookup(self, name: str, relation: str) -> Lookup | None:
        return _by_name(name, relation)

    def phrase(self, say: Say) -> str:
        return f"the {MAYOR} of {say(self.town)} in {self.year}"


class Reading(NamedTuple):
    """The only answer, and how it is found."""

    answer: str
    path: tuple[str, ...]
    """Names on the way: those in the question, then each one found, the answer last."""
    lookups: tuple[Lookup, ...]
    """The articles that have to be read, in order."""


@dataclass(frozen=True)
class Composition:
    """A question's meaning: the object of the last of ``relations``, followed one after another from ``start``."""

    start: Start
    relations: tuple[str, ...]

    def reading(self, world: World) -> Reading | None:
        """Evaluate it over all facts; None unless there is exactly one answer, and no name is met twice."""
        found = self.start.found(world)
        if len(found) != 1:
            return None
        visited = _follow(world, found[0], self.relations)
        before = [name for name in self.start.named if name != found[0]]
        path = (*before, *visited)
        if len(visited) <= len(self.relations) or len(set(path)) < len(path):
            return None
        own = self.start.own_lookup(found[0], self.relations[0] if self.relations else "")
        later = [_by_name(*pair) for pair in zip(visited[1:], self.relations[1:], strict=False)]
        lookups = (*self.start.lookups(), *((own,) if own else ()), *later)
        if isinstance(self.start, Extreme):
            other = _follow(world, self.start.other(found[0]), self.relations)
            # Otherwise the comparison would not matter.
            if len(other) < len(visited) or other[-1] == visited[-1]:
                return None
        return Reading(visited[-1], path, lookups)

    def phrase(self, say: Say) -> str:
        """Say in words what is asked for."""
        words = self.start.phrase(say)
        for relation in self.relations:
            words = phrase(relation, words)
        return words


def _follow(world: World, name: str, relations: Sequence[str]) -> list[str]:
    """Return ``name`` and what the relations lead to, up to the first that is not known."""
    visited = [name]
    for relation in relations:
        value = world.facts[visited[-1]].get(relation)
        if value is None:
            break
        visited.append(value)
    return visited


def draw(shape: Shape, world: World, split: str, level: Level, rng: random.Random) -> Composition | None:
    """Draw a composition of a shape from a split's entities; None where what was drawn cannot be asked."""
    return _KINDS[shape.kind](shape.hops, world, split, level, rng)


def _chain(hops: int, world: World, split: str, level: Level, rng: random.Random) -> Composition | None:
    relations = rng.choice(relation_paths(ENTITY_KINDS, hops, level.relations))
    return Composition(Named(rng.choice(world.members(split, RELATIONS[relations[0]].subject))), relations)


def _comparison(hops: int, world: World, split: str, level: Level, rng: random.Random) -> Composition | None:
    kind, compared = rng.choice((("person", _BORN), ("work", _PUBLISHED)))
    paths = [path for path in relation_paths((kind,), hops - 1, level.relations) if path[0] != compared]
    if not paths:
        return None
    first, second = rng.sample(world.members(split, kind), 2)
    return Composition(Extreme(first, second, compared, rng.random() < 0.5), rng.choice(paths))


def _intersection(hops: int, world: World, split: str, level: Level, rng: random.Random) -> Composition | None:
    # The person's article answers one relation, or none where the person is asked for.
    count = rng.randint(0, 1) if hops == 1 else hops
    person = rng.choice(world.members(split, "person"))
    start = Meeting(*(world.facts[person][relation] for relation in ("birthplace", "employer")))
    return Composition(start, rng.choice(relation_paths(("person",), count, level.relations)))


def _temporal(hops: int, world: World, split: str, level: Level, rng: random.Random) -> Composition | None:
    relations = rng.choice(relation_paths(("person",), hops - 1, level.relations))
    return Composition(InOffice(rng.choice(world.members(split, "town")), rng.choice(YEARS)), relations)


_KINDS: Mapping[str, Callable[[int, World, str, Level, random.Random], Composition | None]] = MappingProxyType(
    {"chain": _chain, "comparison": _comparison, "intersection": _intersection, "temporal": _temporal}
)
