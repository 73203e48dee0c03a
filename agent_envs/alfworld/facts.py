"""What holds in a game, and the questions its grammar asks about that.

The answers and their order are those of ``textworld.logic.State.all_assignments``; facts are plain tuples here because
textworld keeps every proposition it ever made, which adds up over thousands of games, and compares them slowly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from textworld.logic import Predicate, TypeHierarchy

__all__ = ["NEGATION", "Binding", "Change", "Fact", "Facts", "Query", "Signature", "Typed", "fact_of", "negated"]

Typed = tuple[str, str]
"""(name, type) of a thing, or of a placeholder for one."""
Signature = tuple[str, tuple[str, ...]]
"""Predicate name and the types of its arguments."""
Fact = tuple[Signature, tuple[Typed, ...]]
Binding = dict[Typed, Typed]
"""Placeholder -> thing."""

Change = tuple[Fact, Fact]
"""A fact that an effect ends, and the one it brings about."""

NEGATION = "not_"
"""What a predicate's name begins with where it is false."""


def negated(fact: Fact) -> Fact:
    """The opposite of a fact, named the way textworld names it."""
    (name, types), arguments = fact
    opposite = name.removeprefix(NEGATION) if name.startswith(NEGATION) else NEGATION + name
    return (opposite, types), arguments


def fact_of(things: Mapping[str, Typed], predicate: str, names: Iterable[str]) -> Fact:
    """The fact that a predicate holds of the things with these names; ``things`` has all by name, with their types."""
    arguments = tuple([things[name] for name in names])
    return (predicate, tuple([kind for _, kind in arguments])), arguments


class Facts:
    """A set of facts by signature."""

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self._by_signature: defaultdict[Signature, set[tuple[Typed, ...]]] = defaultdict(set)
        for fact in facts:
            self.add(fact)

    def __iter__(self) -> Iterator[Fact]:
        return ((signature, args) for signature, members in self._by_signature.items() for args in members)

    def __contains__(self, fact: Fact) -> bool:
        signature, arguments = fact
        return arguments in self._by_signature.get(signature, ())

    def copy(self) -> Facts:
        twin = Facts()
        twin._by_signature.update((signature, set(members)) for signature, members in self._by_signature.items())
        return twin

    def add(self, fact: Fact) -> None:
        signature, arguments = fact
        self._by_signature[signature].add(arguments)

    def discard(self, fact: Fact) -> None:
        signature, arguments = fact
        self._by_signature[signature].discard(arguments)

    def having(self, signature: Signature) -> Collection[tuple[Typed, ...]]:
        """Arguments of the facts with a signature, in no order."""
        return self._by_signature.get(signature, ())

    def sorted(self, signature: Signature) -> Sequence[tuple[Typed, ...]]:
        """Arguments of the facts with a signature, in textworld's order."""
        members = self._by_signature.get(signature)
        return sorted(members) if members else ()


class Query:
    """A conjunction of predicates over placeholders; different placeholders stand for different things."""

    def __init__(self, predicates: Iterable[Predicate], types: TypeHierarchy) -> None:
        self._parts = [
            (
                tuple((parameter.name, parameter.type) for parameter in predicate.parameters),
                _signatures(predicate, types),
            )
            for predicate in predicates
        ]

    def answers(self, facts: Facts, given: Binding) -> Iterator[Binding]:
        """Every extension of ``given`` for which all predicates are facts."""
        return self._answers(facts, dict(given), 0)

    def _answers(self, facts: Facts, bound: Binding, depth: int) -> Iterator[Binding]:
        if depth == len(self._parts):
            yield dict(bound)
            return
        placeholders, signatures = self._parts[depth]
        for signature in signatures:
            for things in facts.sorted(signature):
                added = []
                for placeholder, thing in zip(placeholders, things, strict=True):
                    known = bound.get(placeholder)
                    if known is None:
                        if thing in bound.values():
                            break
                        bound[placeholder] = thing
                        added.append(placeholder)
                    elif known != thing:
                        break
                else:
                    yield from self._answers(facts, bound, depth + 1)
                for placeholder in added:
                    del bound[placeholder]


def _signatures(predicate: Predicate, types: TypeHierarchy) -> list[Signature]:
    """Signatures of the facts that may match, subtypes included, in the order textworld tries them."""
    declared = [types.get(name) for name in predicate.signature.types]
    return [(predicate.name, tuple(kind.name for kind in kinds)) for kinds in types.multi_subtypes(declared)]
