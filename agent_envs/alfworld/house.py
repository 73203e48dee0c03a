"""A house with a goal, and the PDDL problem that states it in ALFRED's vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent_envs.alfworld.rooms import fits
from agent_envs.alfworld.upstream import constants, gdict

__all__ = ["Goal", "House", "instances", "pddl_problem"]

# The domain's actions name these types, so every problem must declare them.
_DOMAIN_RTYPES = ("Fridge", "Microwave", "SinkBasin")
_DOMAIN_OTYPES = ("ButterKnife", "Knife")

_PROPERTIES = {
    "Cleanable": "cleanable",
    "Heatable": "heatable",
    "Coolable": "coolable",
    "Toggleable": "toggleable",
    "Sliceable": "sliceable",
}


@dataclass(frozen=True)
class Goal:
    """What is to be done, where."""

    task_type: str
    room: str
    scene: int
    item: str
    receptacle: str = ""
    lamp: str = ""

    @property
    def folder(self) -> str:
        """ALFRED's name for the goal: task type, object, movable receptacle, receptacle or lamp, scene."""
        return f"{self.task_type}-{self.item}-None-{self.receptacle or self.lamp}-{self.scene}"


@dataclass(frozen=True)
class House:
    """A goal in a furnished room. Names are instance ids as ``instances`` makes them."""

    goal: Goal
    furniture: Mapping[str, str]
    """Furniture id -> type."""
    objects: Mapping[str, str]
    """Object id -> type."""
    places: Mapping[str, str]
    """Object id -> id of the furniture it starts in or on."""


def instances(types: Iterable[str]) -> dict[str, str]:
    """Ids for the given types, in order; the engine's display name ("sinkbasin 1") is derived from the id.

    ALFWorld reads the type before the first ``_bar_``, and appends "basin" when the id contains it: hence the two-part
    form for sinks and bathtubs.
    """
    names: dict[str, str] = {}
    for number, kind in enumerate(types, start=1):
        if kind.endswith("Basin"):
            names[f"{kind.removesuffix('Basin')}_bar_{number:02d}_bar_{kind}"] = kind
        else:
            names[f"{kind}_bar_{number:02d}"] = kind
    return names


def pddl_problem(house: House) -> str:
    """The problem as text for ALFWorld's domain: everything closed, hands empty, the agent beside no furniture."""
    goal = house.goal
    locations = {name: f"loc_bar_{number:02d}" for number, name in enumerate(house.furniture, start=1)}
    rtypes = sorted({*house.furniture.values(), *_DOMAIN_RTYPES})
    otypes = sorted({*house.objects.values(), *_DOMAIN_OTYPES})

    declared = ["agent1 - agent", "loc_bar_00 - location"]
    declared += [f"{location} - location" for location in locations.values()]
    declared += [f"{kind}Type - rtype" for kind in rtypes] + [f"{kind}Type - otype" for kind in otypes]
    declared += [f"{name} - receptacle" for name in house.furniture] + [f"{name} - object" for name in house.objects]

    facts = ["(= (total-cost) 0)", "(atLocation agent1 loc_bar_00)"]
    for name, kind in house.furniture.items():
        facts += [f"(receptacleType {name} {kind}Type)", f"(receptacleAtLocation {name} {locations[name]})"]
        if kind in constants.OPENABLE_CLASS_SET:
            facts.append(f"(openable {name})")
    facts += [
        f"(canContain {r}Type {o}Type)" for r in sorted(set(house.furniture.values())) for o in otypes if fits(o, r)
    ]
    for name, kind in house.objects.items():
        place = house.places[name]
        facts += [
            f"(objectType {name} {kind}Type)",
            f"(inReceptacle {name} {place})",
            f"(objectAtLocation {name} {locations[place]})",
        ]
        facts += [f"({fact} {name})" for key, fact in _PROPERTIES.items() if kind in constants.VAL_ACTION_OBJECTS[key]]
        if kind != goal.lamp:
            facts.append(f"(pickupable {name})")
        if kind in constants.MOVABLE_RECEPTACLES_SET:
            facts.append(f"(isReceptacleObject {name})")

    # ALFWorld's goal text writes "#" for the "-" of a typed variable, and ends the problem's outer parenthesis.
    wanted = gdict[goal.task_type]["pddl"].format(obj=goal.item, recep=goal.receptacle, toggle=goal.lamp)
    return "\n".join(
        [
            f"(define (problem {goal.task_type}_{goal.scene})",
            "(:domain alfred)",
            "(:objects",
            *declared,
            ")",
            "(:init",
            *facts,
            ")",
            wanted.replace("#", "-").strip(),
            "",
        ]
    )
