"""Whether a game's goal is reached, read off the facts.

A goal is a condition of the planner's parser: conjunctions, quantifiers, disjunctions and literals. Quantified
conjunctions are searched fact by fact, those first that leave the fewest choices, so that a check takes microseconds
where trying all things for all variables would take milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fast_downward.translate import pddl

from agent_envs.alfworld.facts import Binding, Fact, Facts, Signature, Typed

__all__ = ["Goal", "UnreadableGoal"]

_EQUAL = "="


class UnreadableGoal(ValueError):
    """The goal has a form that is not read here."""


@dataclass
class _Search:
    """A conjunction, true if its variables can be bound so that everything below holds."""

    variables: list[Typed] = field(default_factory=list)
    atoms: list[Fact] = field(default_factory=list)
    denied: list[Fact] = field(default_factory=list)
    equal: list[tuple[Typed, Typed]] = field(default_factory=list)
    different: list[tuple[Typed, Typed]] = field(default_factory=list)
    choices: list[list[_Search]] = field(default_factory=list)
    """Of each, one must be true."""
    excluded: list[_Search] = field(default_factory=list)
    """None may be true."""


class Goal:
    """The goal of one game.

    Args:
        condition: as the planner's parser returns it.
        things: all things by name.
        kinds: type -> the types that count as it, itself included.
        signatures: predicate -> its signature; all its facts must have this one.

    Raises:
        UnreadableGoal: a thing, predicate or form that is unknown here.
    """

    def __init__(
        self,
        condition: Any,
        things: Mapping[str, Typed],
        kinds: Mapping[str, frozenset[str]],
        signatures: Mapping[str, Signature],
    ) -> None:
        self._things = things
        self._kinds = kinds
        self._signatures = signatures
        self.predicates: set[str] = set()
        """Predicates that the goal asks for."""
        self._search = self._read(condition, {})

    def reached(self, facts: Facts) -> bool:
        """Whether the goal is true where ``facts`` hold."""
        return self._found(self._search, facts, {}, strict=True)

    def possible(self, facts: Facts) -> bool:
        """Whether the goal is true where ``facts`` hold if all that it denies is let pass."""
        return self._found(self._search, facts, {}, strict=False)

    def _read(self, condition: Any, scope: Mapping[str, Typed]) -> _Search:
        search = _Search()
        self._add(search, condition, dict(scope))
        search.atoms = _fewest_choices_first(search.atoms, set(scope.values()))
        return search

    def _add(self, search: _Search, condition: Any, scope: dict[str, Typed]) -> None:
        if isinstance(condition, pddl.Literal):
            self._add_literal(search, condition, scope)
        elif isinstance(condition, pddl.Conjunction):
            for part in condition.parts:
                self._add(search, part, scope)
        elif isinstance(condition, pddl.ExistentialCondition):
            # The parser gives every variable of a condition its own name.
            for parameter in condition.parameters:
                if parameter.type_name not in self._kinds:
                    raise UnreadableGoal(f"the goal names the type {parameter.type_name}, which is not declared")
                scope = scope | {parameter.name: (parameter.name, parameter.type_name)}
                search.variables.append(scope[parameter.name])
            for part in condition.parts:
                self._add(search, part, scope)
        elif isinstance(condition, pddl.Disjunction):
            search.choices.append([self._read(part, scope) for part in condition.parts])
        elif isinstance(condition, pddl.UniversalCondition):
            search.excluded.append(self._read(condition.negate(), scope))
        elif not isinstance(condition, pddl.Truth):
            raise UnreadableGoal(f"no goal is read from {type(condition).__name__}")

    def _add_literal(self, search: _Search, literal: Any, scope: Mapping[str, Typed]) -> None:
        try:
            arguments = tuple(scope[name] if name in scope else self._things[name] for name in literal.args)
            if literal.predicate == _EQUAL:
                first, second = arguments
                (search.different if literal.negated else search.equal).append((first, second))
                return
            atom = (self._signatures[literal.predicate], arguments)
        except KeyError as error:
            raise UnreadableGoal(f"the goal names {error}, which is not declared") from error
        self.predicates.add(literal.predicate)
        (search.denied if literal.negated else search.atoms).append(atom)

    def _found(self, search: _Search, facts: Facts, bound: Binding, strict: bool) -> bool:
        return any(
            self._accepted(search, facts, whole, strict)
            for matched in self._matched(search.atoms, facts, bound, 0)
            for whole in self._completed(search.variables, matched)
        )

    def _matched(self, atoms: Sequence[Fact], facts: Facts, bound: Binding, depth: int) -> Iterator[Binding]:
        if depth == len(atoms):
            yield bound
            return
        signature, arguments = atoms[depth]
        rows = facts.having(signature)
        known = tuple(bound.get(argument, argument) for argument in arguments)
        if not any(_is_variable(argument) for argument in known):
            if known in rows:
                yield from self._matched(atoms, facts, bound, depth + 1)
            return
        for row in rows:
            extended = self._unified(known, row, bound)
            if extended is not None:
                yield from self._matched(atoms, facts, extended, depth + 1)

    def _unified(self, known: Sequence[Typed], row: Sequence[Typed], bound: Binding) -> Binding | None:
        added: Binding = {}
        for argument, thing in zip(known, row, strict=True):
            if argument == thing:
                continue
            if (
                not _is_variable(argument)
                or thing[1] not in self._kinds[argument[1]]
                or added.setdefault(argument, thing) != thing
            ):
                return None
        return {**bound, **added}

    def _completed(self, variables: Sequence[Typed], bound: Binding) -> Iterator[Binding]:
        """Variables that no atom names stand for any thing of their type."""
        free = next((variable for variable in variables if variable not in bound), None)
        if free is None:
            yield bound
            return
        for thing in self._things.values():
            if thing[1] in self._kinds[free[1]]:
                yield from self._completed(variables, {**bound, free: thing})

    def _accepted(self, search: _Search, facts: Facts, bound: Binding, strict: bool) -> bool:
        def value(argument: Typed) -> Typed:
            return bound.get(argument, argument)

        if any(value(first) != value(second) for first, second in search.equal):
            return False
        if not all(any(self._found(part, facts, bound, strict) for part in choice) for choice in search.choices):
            return False
        if not strict:
            return True
        return not (
            any(value(first) == value(second) for first, second in search.different)
            or any(tuple(map(value, arguments)) in facts.having(signature) for signature, arguments in search.denied)
            or any(self._found(part, facts, bound, strict) for part in search.excluded)
        )


def _is_variable(argument: Typed) -> bool:
    return argument[0].startswith("?")


def _fewest_choices_first(atoms: Sequence[Fact], bound: set[Typed]) -> list[Fact]:
    """Atoms in such an order that each has as few unbound variables as possible when its turn comes."""
    left, ordered, bound = list(atoms), [], set(bound)
    while left:
        chosen = min(left, key=lambda atom: sum(_is_variable(a) and a not in bound for a in atom[1]))
        left.remove(chosen)
        ordered.append(chosen)
        bound.update(chosen[1])
    return ordered
