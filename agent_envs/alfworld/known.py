"""Reads games of ALFRED's domain, whose rules are written out, so that they are played without a translation.

A game that is not read here is none of this domain, or says something that the rules do not foresee; the native engine
then translates it, and says what is wrong with it if something is.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from agent_envs.alfworld.facts import Facts
from agent_envs.alfworld.goals import Goal, UnreadableGoal
from agent_envs.alfworld.rules import SIGNATURES, UNTRACED, Rules
from agent_envs.alfworld.translation import Description, describe
from agent_envs.alfworld.upstream import parse_domain_pddl, parse_nested_list, parse_task_pddl

__all__ = ["KnownGame", "read_known"]

_DOMAINS = frozenset({"915e118f4f32b4d826bf53c99e860dd85831afffb1a31ad333f063ce005b7122"})
"""Domains that ``Rules`` states, by the hash of their words: comments, blanks and letter case do not count."""


@dataclass(frozen=True)
class KnownGame:
    """A game whose rules are written out."""

    description: Description
    start: Facts
    """What holds at the beginning."""
    rules: Rules
    goal: Goal


@dataclass(frozen=True)
class _Domain:
    name: str
    types: list[Any]
    types_by_name: Mapping[str, Any]
    predicates: Mapping[str, Any]
    actions: list[Any]


def read_known(domain: str, problem: str) -> KnownGame | None:
    """The game of a domain and a problem, or None where the rules written out may not state it."""
    known = _domain(domain)
    if known is None:
        return None
    try:
        with redirect_stdout(io.StringIO()):  # the parser's warnings
            _, name, _, objects, init, condition, _ = parse_task_pddl(
                parse_nested_list(problem.split("\n")), known.types_by_name, known.predicates
            )
    except (Exception, SystemExit):  # The parser has an error of its own for few mistakes only.
        return None
    description = describe(objects, known.actions, known.types, init)
    if name != known.name or len(description.objects) != len(objects):
        return None
    try:
        return _stated(description, Facts(description.facts()), condition)
    except (KeyError, UnreadableGoal):
        return None


def _stated(description: Description, start: Facts, condition: Any) -> KnownGame | None:
    if any(SIGNATURES[signature[0]] != signature for signature, _ in start):
        return None
    if len(start.having(SIGNATURES["atlocation"])) != 1 or list(description.objects.values()).count("agent") != 1:
        return None
    things = description.things()
    goal = Goal(condition, things, description.kinds(), SIGNATURES)
    rules = Rules(things, start)
    # The engine offers nothing at all in a game that cannot be won.
    if (
        goal.predicates & UNTRACED
        or not goal.predicates & set(description.changing)
        or not goal.possible(rules.reachable)
    ):
        return None
    return KnownGame(description, start, rules, goal)


@lru_cache(maxsize=8)
def _domain(text: str) -> _Domain | None:
    words = " ".join(
        word
        for line in text.lower().split("\n")
        for word in line.split(";")[0].replace("(", " ( ").replace(")", " ) ").split()
    )
    if hashlib.sha256(words.encode()).hexdigest() not in _DOMAINS:
        return None
    name, _, types, types_by_name, _, _, predicates, _, actions, _ = parse_domain_pddl(
        parse_nested_list(text.split("\n"))
    )
    return _Domain(name, types, types_by_name, predicates, actions)
