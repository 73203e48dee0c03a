"""The part of a game that its goal can need, as a problem of its own, so that planning takes no minutes.

The engine's planner searches without a heuristic over everything that can be moved or opened. In ALFRED's domain no
action hinders another through things it does not name (nothing is ever full, and nothing is blocked), so a plan for the
remaining things is a plan for the whole house.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent_envs.alfworld.facts import Facts

__all__ = ["essential_problem", "stated_problem"]

_WORD = re.compile(r"[\w-]+")
_DECLARED_TYPES = ("agent", "rtype", "otype")
"""Types whose things are all kept; they are few or never move."""


def essential_problem(domain: str, problem: str, facts: Facts) -> str:
    """A PDDL problem with the goal of ``problem``, where ``facts`` hold and all else is left out.

    Left are the objects of types that the goal names and those in the agent's hands; the furniture they are in; and one
    piece of furniture of every type that the goal or the domain names, and one for each thing held to be put down in.
    """
    goal = _goal(problem.lower())
    wanted = set(_WORD.findall(goal))
    stations = set(_WORD.findall(domain.lower()))
    told: dict[str, list[tuple[str, ...]]] = {}
    typed: dict[str, str] = {}
    for (predicate, _), arguments in sorted(facts):
        told.setdefault(predicate, []).append(tuple(name for name, _ in arguments))
        typed.update(arguments)

    object_types = {row[0]: row[1] for row in told.get("objecttype", ())}
    placed = {row[0]: row[1] for row in told.get("receptacleatlocation", ())}
    furniture_types = {place: kind for place, kind in told.get("receptacletype", ()) if place in placed}
    room_for = set(told.get("cancontain", ()))
    held = [thing for _, thing in told.get("holds", ())]
    objects = {thing for thing, kind in object_types.items() if kind in wanted} | set(held)
    furniture = {place for thing, place in told.get("inreceptacle", ()) if thing in objects}
    one_of_each = {kind: place for place, kind in furniture_types.items()}
    furniture |= {place for kind, place in one_of_each.items() if kind in wanted or kind in stations}
    for thing in held:
        takers = [place for place, kind in furniture_types.items() if (kind, object_types[thing]) in room_for]
        furniture.update(takers[:1])
    locations = {location for place, location in placed.items() if place in furniture}
    locations |= {location for _, location in told.get("atlocation", ())}

    kept = objects | furniture | locations | {name for name, kind in typed.items() if kind in _DECLARED_TYPES}
    return stated_problem(problem, {name: typed[name] for name in sorted(kept)}, facts)


def stated_problem(problem: str, objects: Mapping[str, str], facts: Facts) -> str:
    """A PDDL problem with the goal of ``problem``, about these things and what ``facts`` say of them alone."""
    return "\n".join(
        [
            "(define (problem planned) (:domain alfred)",
            "(:objects",
            *(f"{name} - {kind}" for name, kind in objects.items()),
            ")",
            "(:init (= (total-cost) 0)",
            *(
                f"({' '.join((predicate, *(name for name, _ in arguments)))})"
                for (predicate, _), arguments in sorted(facts)
                if not predicate.startswith("not_") and all(name in objects for name, _ in arguments)
            ),
            ")",
            _goal(problem.lower()),
            ")",
        ]
    )


def _goal(problem: str) -> str:
    """The goal with its parentheses."""
    start = problem.index("(:goal")
    depth = 0
    for end in range(start, len(problem)):
        depth += {"(": 1, ")": -1}.get(problem[end], 0)
        if depth == 0:
            return problem[start : end + 1]
    raise ValueError("the problem's goal has no end")
