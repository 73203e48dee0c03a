"""The texts of a game: what textworld's grammar derives, without re-parsing and copying at every symbol.

Grammars are parsed by textworld. Deriving follows ``textworld.envs.pddl.textgen.ContextSensitiveGrammar.derive``, but
keeps symbols and their contexts apart, so that parsed symbols are never changed and can be shared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import CodeType

from textworld.envs.pddl.logic import GameLogic
from textworld.envs.pddl.textgen import (
    ConditionalSymbol,
    ContextSensitiveGrammar,
    CSGUnknownSymbolError,
    EvalSymbol,
    ListSymbol,
    NonterminalSymbol,
    Symbol,
    TerminalSymbol,
)
from textworld.generator.game import EntityInfo
from textworld.logic import Predicate, Rule, TypeHierarchy

from agent_envs.alfworld.facts import Binding, Facts, Query

__all__ = ["Wording", "parse_grammar"]

_Item = tuple[Symbol, Binding]

_GOAL = "UNKNOWN GOAL"
"""Stands for the goal in the grammar that ALFWorld ships."""
# Only characters that mean nothing to the grammar: then parsing with another goal gives the same rules.
_TASK = re.compile(r"(?<=Your task is to: )[A-Za-z0-9 ,]+(?=\.\")")


def parse_grammar(text: str) -> tuple[GameLogic, str]:
    """Parsed actions and rules of a grammar, and the goal to put where the rules say ``UNKNOWN GOAL``.

    All games of a data set have one grammar but for the goal, so they share one parse (60 ms).
    """
    goals = _TASK.findall(text)
    if len(goals) == 1:
        neutral = _TASK.sub(_GOAL, text)
        if neutral.count(_GOAL) == 1:
            return _parsed(neutral), goals[0]
    return _parsed(text), _GOAL


class Wording:
    """Derives the texts of one game.

    Args:
        grammar: the grammar's text.
        types: the domain's types.
        things: thing's id -> its names, as the texts show them.
    """

    def __init__(self, grammar: str, types: TypeHierarchy, things: Mapping[str, EntityInfo]) -> None:
        logic, self._goal = parse_grammar(grammar)
        self.actions = logic.actions
        self._rules = logic.grammar._rules
        self._types = types
        self._things = things
        self._queries: dict[str, Query] = {}

    def derive(self, start: str, facts: Facts, binding: Binding) -> str:
        """The text that ``start`` stands for where ``facts`` hold and the action's parameters are bound."""
        stack: list[_Item] = [(symbol, binding) for symbol in reversed(_symbols(start))]
        text = []
        while stack:
            symbol, bound = stack.pop()
            if isinstance(symbol, TerminalSymbol):
                text.append(str(symbol))
            elif isinstance(symbol, EvalSymbol):
                text.append(self._value(symbol, bound))
            else:
                stack.extend(reversed(self._expand(symbol, facts, bound)))
        return "".join(text).replace(_GOAL, self._goal)

    def answers(self, question: str, facts: Facts) -> list[Binding]:
        """Ways in which a conjunction of predicates, written as in the grammar, is true."""
        return list(self._query(question).answers(facts, {}))

    def predicates(self, start: str) -> set[str]:
        """Names of all predicates that the text of ``start`` may depend on."""
        found: set[str] = set()
        seen: set[str] = set()
        pending = list(_symbols(start))
        while pending:
            symbol = pending.pop()
            if isinstance(symbol, ListSymbol):
                pending.append(symbol.symbol)
            elif isinstance(symbol, ConditionalSymbol):
                pending.append(symbol.expression)
                found.update(_names(symbol.given))
            elif isinstance(symbol, NonterminalSymbol) and str(symbol) not in seen:
                seen.add(str(symbol))
                for rule in self._rules.get(str(symbol), ()):
                    pending.extend(rule.rhs)
                    found.update(_names(rule.condition))
        return found

    def _expand(self, symbol: Symbol, facts: Facts, bound: Binding) -> Sequence[_Item]:
        if isinstance(symbol, NonterminalSymbol):
            return [(part, bound) for part in self._rule(symbol, facts, bound)]
        if isinstance(symbol, ListSymbol):
            return list(_listed(self._expand(symbol.symbol, facts, bound), bound))
        if not symbol.given:
            return [(symbol.expression, bound)]
        return [(symbol.expression, answer) for answer in self._query(symbol.given).answers(facts, bound)]

    def _rule(self, symbol: Symbol, facts: Facts, bound: Binding) -> Sequence[Symbol]:
        for rule in self._rules.get(str(symbol), ()):
            if not rule.condition or any(True for _ in self._query(rule.condition).answers(facts, bound)):
                symbols: Sequence[Symbol] = rule.rhs
                return symbols
        raise CSGUnknownSymbolError(symbol)

    def _value(self, symbol: EvalSymbol, bound: Binding) -> str:
        variables = {name: self._things[thing] for (name, _), (thing, _) in bound.items()}
        return str(eval(_code(symbol.expression), {}, variables))

    def _query(self, expression: str) -> Query:
        if expression not in self._queries:
            self._queries[expression] = Query(_conjunction(expression), self._types)
        return self._queries[expression]


def _listed(items: Sequence[_Item], bound: Binding) -> Iterator[_Item]:
    """Items with the grammar's separators between them."""
    if not items:
        yield NonterminalSymbol("list_empty"), bound
    for number, item in enumerate(items):
        if number:
            last = number == len(items) - 1
            yield NonterminalSymbol("list_last_separator" if last else "list_separator"), bound
        yield item


def _names(expression: str) -> Iterator[str]:
    if expression:
        yield from (predicate.name.removeprefix("not_") for predicate in _conjunction(expression))


# What is cached below depends on the text alone. Bounds keep a process that reads many foreign grammars from growing.


@lru_cache(maxsize=8)
def _parsed(grammar: str) -> GameLogic:
    return GameLogic(domain="", grammar=grammar)


@lru_cache(maxsize=1024)
def _symbols(text: str) -> tuple[Symbol, ...]:
    grammar = ContextSensitiveGrammar.parse(json.dumps({"start": [{"rhs": text}]}))
    return tuple(grammar._rules["start"][0].rhs)


@lru_cache(maxsize=1024)
def _conjunction(expression: str) -> tuple[Predicate, ...]:
    return tuple(Rule.parse_conjunctive_query(expression).preconditions)


@lru_cache(maxsize=1024)
def _code(expression: str) -> CodeType:
    return compile(expression.strip(), "<ALFWorld grammar>", "eval")
