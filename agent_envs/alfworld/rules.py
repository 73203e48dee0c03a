"""The rules of ALFRED's domain, written out: what can be done where certain facts hold, and what it changes.

They say what the domain's PDDL says, for houses with one agent at one place whose facts are typed as the domain
declares them; ``known`` sees to that. Names are those of the parsed PDDL, in lower case.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from agent_envs.alfworld.facts import Change, Fact, Facts, Signature, Typed, fact_of, negated

__all__ = ["SIGNATURES", "UNTRACED", "Deed", "Rules"]

Deed = tuple[str, ...]
"""An action's name and its arguments, as the native engine names an operator."""

SIGNATURES: MappingProxyType[str, Signature] = MappingProxyType(
    {
        name: (name, types)
        for types, names in {
            ("agent",): ("holdsany", "holdsanyreceptacleobject"),
            ("agent", "location"): ("atlocation",),
            ("agent", "object"): ("holds",),
            ("location",): ("examined",),
            ("receptacle",): ("checked", "full", "openable", "opened"),
            ("receptacle", "location"): ("receptacleatlocation",),
            ("receptacle", "rtype"): ("receptacletype",),
            ("rtype", "otype"): ("cancontain",),
            ("object",): (
                *("cleanable", "coolable", "heatable", "moveable", "pickupable", "sliceable", "toggleable"),
                *("isclean", "iscool", "ishot", "ison", "issliced", "istoggled"),
                *("isreceptacleobject", "isreceptacleobjectfull"),
            ),
            ("object", "location"): ("objectatlocation",),
            ("object", "object"): ("inreceptacleobject",),
            ("object", "otype"): ("objecttype",),
            ("object", "receptacle"): ("inreceptacle", "wasinreceptacle"),
        }.items()
        for name in names
    }
)
"""Predicate -> its signature."""

UNTRACED = frozenset({"checked", "ison"})
"""Predicates whose truth is not followed: actions set the first on things of other types than it is declared for, and
switch the second by what it was. No action asks for them; a goal that does is none for these rules."""

_EFFECTS: MappingProxyType[str, tuple[tuple[bool, str, tuple[int, ...]], ...]] = MappingProxyType(
    {
        "look": ((True, "checked", (1,)),),
        "inventory": ((True, "checked", (0,)),),
        "help": ((True, "checked", (0,)),),
        "examinereceptacle": ((True, "checked", (1,)),),
        "examineobject": ((True, "checked", (1,)),),
        "gotolocation": ((False, "atlocation", (0, 1)), (True, "atlocation", (0, 2))),
        "openobject": ((True, "opened", (2,)), (True, "checked", (2,))),
        "closeobject": ((False, "opened", (2,)),),
        "pickupobject": (
            (False, "inreceptacle", (2, 3)),
            (True, "holds", (0, 2)),
            (True, "holdsany", (0,)),
            (False, "objectatlocation", (2, 1)),
        ),
        "putobject": (
            (True, "inreceptacle", (2, 3)),
            (True, "objectatlocation", (2, 1)),
            (False, "holds", (0, 2)),
            (False, "holdsany", (0,)),
        ),
        "cleanobject": ((True, "isclean", (3,)),),
        "heatobject": ((True, "ishot", (3,)), (False, "iscool", (3,))),
        "coolobject": ((True, "iscool", (3,)), (False, "ishot", (3,))),
        # The engine reports both outcomes of the switch, in this order, whichever came true.
        "toggleobject": ((True, "ison", (2,)), (False, "ison", (2,)), (True, "istoggled", (2,))),
        "sliceobject": ((True, "issliced", (2,)),),
    }
)
"""Action -> what it makes true (or false) of which of its arguments."""

_STATIONS = (
    ("cleanobject", "cleanable", "sinkbasintype", "isclean"),
    ("heatobject", "heatable", "microwavetype", "ishot"),
    ("coolobject", "coolable", "fridgetype", "iscool"),
)
"""Actions that furniture is needed for: the property of the object, the type of the furniture, and the result."""
_BLADES = frozenset({"knifetype", "butterknifetype"})


class Rules:
    """What can be done in one house.

    Args:
        things: all things by name.
        start: what holds at the beginning. What no action changes is taken from here.
    """

    def __init__(self, things: Mapping[str, Typed], start: Facts) -> None:
        self._things = things
        ((self._agent, self._origin),) = _rows(start, "atlocation")
        self._placed = sorted(_rows(start, "receptacleatlocation"))
        self._here: defaultdict[str, list[str]] = defaultdict(list)
        for place, location in self._placed:
            self._here[location].append(place)
        self._furniture_types = _grouped(_rows(start, "receptacletype"))
        self._object_types = _grouped(_rows(start, "objecttype"))
        self._room_for = set(_rows(start, "cancontain"))
        self._able = {
            name: {thing for (thing,) in _rows(start, name)}
            for name in ("openable", "pickupable", "toggleable", "sliceable", *(able for _, able, _, _ in _STATIONS))
        }
        self.reachable = self._reachable(start)
        """What may ever be true, if nothing that is done made anything else false."""

    def deeds(self, facts: Facts) -> Iterator[Deed]:
        """What can be done where ``facts`` hold. Deeds that are worded alike do the same."""
        agent = self._agent
        ((_, here),) = _rows(facts, "atlocation")
        held = [thing for _, thing in _rows(facts, "holds")]
        free = not facts.having(SIGNATURES["holdsany"])
        opened = {place for (place,) in _rows(facts, "opened")}
        contents = _rows(facts, "inreceptacle")

        yield "help", agent
        yield "inventory", agent
        yield "look", agent, here
        for place, there in self._placed:
            # Going nowhere is no deed.
            if there != here:
                yield "gotolocation", agent, here, there, place
        for thing in held:
            # The domain means things in reach as well, but misspells a type there ("location,"), which nothing has.
            yield "examineobject", agent, thing
        for place in self._here.get(here, ()):
            shut = place in self._able["openable"] and place not in opened
            yield "examinereceptacle", agent, place
            if place in self._able["openable"]:
                yield "openobject" if shut else "closeobject", agent, here, place
            for thing in [thing for thing, within in contents if within == place]:
                if thing in self._able["toggleable"]:
                    yield "toggleobject", agent, here, thing, place
                if not shut and free and thing in self._able["pickupable"]:
                    yield "pickupobject", agent, here, thing, place
            for thing in held:
                if not shut:
                    for of_thing, of_place in self._fits(thing, place):
                        yield "putobject", agent, here, thing, place, of_thing, of_place
                for action, able, station, _ in _STATIONS:
                    if thing in self._able[able] and station in self._furniture_types.get(place, ()):
                        yield action, agent, here, place, thing
        for blade in held:
            if _BLADES.intersection(self._object_types.get(blade, ())):
                for thing, location in _rows(facts, "objectatlocation"):
                    if location == here and thing in self._able["sliceable"]:
                        yield "sliceobject", agent, here, thing, blade

    def changes(self, deed: Deed) -> tuple[Change, ...]:
        """What a deed does to the facts, in the order in which the native engine reports it."""
        action, *arguments = deed
        changes = []
        for begins, predicate, positions in _EFFECTS[action]:
            fact = self._fact(predicate, *(arguments[position] for position in positions))
            if begins:
                changes.append((negated(fact), fact))
            elif fact in self.reachable or predicate in UNTRACED:
                # The engine knows nothing of an end to what never can be.
                changes.append((fact, negated(fact)))
        return tuple(changes)

    def _fits(self, thing: str, place: str) -> Iterator[tuple[str, str]]:
        for of_thing in self._object_types.get(thing, ()):
            for of_place in self._furniture_types.get(place, ()):
                if (of_place, of_thing) in self._room_for:
                    yield of_thing, of_place

    def _reachable(self, start: Facts) -> Facts:
        found = start.copy()
        stored: defaultdict[str, set[str]] = defaultdict(set)
        for thing, place in _rows(start, "inreceptacle"):
            stored[thing].add(place)
        placed = {place for place, _ in self._placed}
        stations = {of_place for place in placed for of_place in self._furniture_types.get(place, ())}
        held = {thing for _, thing in _rows(start, "holds")}
        held |= {thing for thing in self._able["pickupable"] if placed & stored[thing]}

        for place, location in self._placed:
            found.add(self._fact("atlocation", self._agent, location))
            if place in self._able["openable"]:
                found.add(self._fact("opened", place))
            for thing in held:
                if any(self._fits(thing, place)):
                    stored[thing].add(place)
                    found.add(self._fact("inreceptacle", thing, place))
                    found.add(self._fact("objectatlocation", thing, location))
        for thing in held:
            found.add(self._fact("holds", self._agent, thing))
            if thing in self._able["pickupable"] and placed & stored[thing]:
                found.add(self._fact("holdsany", self._agent))
            for _, able, station, result in _STATIONS:
                if thing in self._able[able] and station in stations:
                    found.add(self._fact(result, thing))
        for thing in self._able["toggleable"]:
            if placed & stored[thing]:
                found.add(self._fact("istoggled", thing))
        if any(_BLADES.intersection(self._object_types.get(thing, ())) for thing in held):
            visited = {self._origin, *(location for _, location in self._placed)}
            for thing, location in _rows(found, "objectatlocation"):
                if location in visited and thing in self._able["sliceable"]:
                    found.add(self._fact("issliced", thing))
        return found

    def _fact(self, predicate: str, *names: str) -> Fact:
        return fact_of(self._things, predicate, names)


def _rows(facts: Facts, predicate: str) -> list[tuple[str, ...]]:
    return [tuple([name for name, _ in row]) for row in facts.having(SIGNATURES[predicate])]


def _grouped(pairs: Iterable[tuple[str, ...]]) -> dict[str, list[str]]:
    grouped: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in sorted(pairs):
        grouped[key].append(value)
    return dict(grouped)
