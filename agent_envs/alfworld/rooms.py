"""The tables that houses are generated from: rooms, sizes and task types.

What fits where and what can be heated, cooled or cleaned comes from ALFWorld's own tables (``alfworld.gen.constants``);
here is only which things a kind of room has, and how large a house is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from agent_envs.alfworld.upstream import constants

__all__ = ["LAMP_STANDS", "ROOMS", "SIZES", "TASKS", "Room", "Size", "TaskType", "fits", "furniture_of", "scenes_of"]


@dataclass(frozen=True)
class Room:
    """A kind of room: what may stand in it and what may lie around."""

    furniture: tuple[str, ...]
    objects: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """How much one house holds."""

    receptacles: int
    objects: int
    copies: int = 1
    """Most objects of one type among the bystanders."""
    pieces: int = 1
    """Most pieces of one furniture type, where houses have several of it at all."""


@dataclass(frozen=True)
class TaskType:
    """What a goal asks for beyond an object of the right type."""

    station: str = ""
    """Furniture the task needs ("" for none); never the target."""
    property: str = ""
    """Key of ``VAL_ACTION_OBJECTS`` that the object must be in ("" for none)."""
    amount: int = 1
    """Objects of the target type."""
    lamp: str = ""
    """Lamp to look under; such a task has no target receptacle."""


SIZES = MappingProxyType(
    {
        "small": Size(receptacles=5, objects=4),
        "medium": Size(receptacles=12, objects=12, copies=2, pieces=3),
        "real": Size(receptacles=24, objects=25, copies=3, pieces=8),
    }
)
"""``real`` is as large as an official house."""

TASKS = MappingProxyType(
    {
        "pick_and_place_simple": TaskType(),
        "look_at_obj_in_light": TaskType(lamp="DeskLamp"),
        "pick_clean_then_place_in_recep": TaskType(station="SinkBasin", property="Cleanable"),
        "pick_heat_then_place_in_recep": TaskType(station="Microwave", property="Heatable"),
        "pick_cool_then_place_in_recep": TaskType(station="Fridge", property="Coolable"),
        "pick_two_obj_and_place": TaskType(amount=2),
    }
)

LAMP_STANDS = ("Desk", "SideTable", "Dresser", "CoffeeTable")
"""Furniture a lamp may stand on."""

ROOMS = MappingProxyType(
    {
        "Kitchen": Room(
            furniture=(
                *("Cabinet", "CoffeeMachine", "CounterTop", "DiningTable", "Drawer", "Fridge"),
                *("GarbageCan", "Microwave", "Shelf", "SinkBasin", "StoveBurner"),
            ),
            objects=(
                *("Apple", "Bowl", "Bread", "ButterKnife", "Cup", "DishSponge", "Egg", "Fork", "Kettle", "Knife"),
                *("Ladle", "Lettuce", "Mug", "Pan", "PepperShaker", "Plate", "Pot", "Potato", "SaltShaker"),
                *("SoapBottle", "Spatula", "Spoon", "Tomato", "WineBottle"),
            ),
        ),
        "LivingRoom": Room(
            furniture=(
                *("ArmChair", "Cabinet", "CoffeeTable", "Drawer", "Dresser", "GarbageCan"),
                *("Ottoman", "Safe", "Shelf", "SideTable", "Sofa"),
            ),
            objects=(
                *("Book", "Candle", "CellPhone", "CreditCard", "KeyChain", "Laptop", "Newspaper"),
                *("Pillow", "RemoteControl", "Statue", "TissueBox", "Vase", "Watch", "WateringCan"),
            ),
        ),
        "Bedroom": Room(
            furniture=(
                *("ArmChair", "Bed", "Cabinet", "Desk", "Drawer", "Dresser"),
                *("GarbageCan", "LaundryHamper", "Safe", "Shelf", "SideTable"),
            ),
            objects=(
                *("AlarmClock", "BasketBall", "Book", "Bowl", "CD", "CellPhone", "Cloth", "CreditCard", "KeyChain"),
                *("Laptop", "Mug", "Pen", "Pencil", "Pillow", "TennisRacket", "TissueBox", "Watch"),
            ),
        ),
        "Bathroom": Room(
            furniture=(
                *("BathtubBasin", "Cabinet", "Cart", "CounterTop", "Drawer", "GarbageCan"),
                *("Shelf", "SinkBasin", "Toilet", "ToiletPaperHanger"),
            ),
            objects=(
                *("Candle", "Cloth", "DishSponge", "HandTowel", "PaperTowel", "SoapBar"),
                *("SoapBottle", "SprayBottle", "TissueBox", "ToiletPaper"),
            ),
        ),
    }
)

_MOST_PIECES = MappingProxyType(
    {
        **{"ArmChair": 3, "Cabinet": 8, "CounterTop": 3, "Drawer": 8, "Shelf": 6},
        **{"SideTable": 3, "SinkBasin": 2, "Sofa": 2, "StoveBurner": 4},
    }
)
"""Furniture type -> how many pieces a room of the largest size may have; one of any other type."""


def fits(item: str, receptacle: str) -> bool:
    """Whether an object type may lie in or on a furniture type."""
    return item in constants.VAL_RECEPTACLE_OBJECTS[receptacle]


def scenes_of(split: str) -> tuple[tuple[str, int], ...]:
    """Pairs (room, scene number) of a split: ALFRED's test scenes for ``valid_unseen``, else its training scenes."""
    numbers = constants.TEST_SCENE_NUMBERS if split == "valid_unseen" else constants.TRAIN_SCENE_NUMBERS
    return tuple((room, number) for room in ROOMS for number in numbers if number in constants.SCENE_TYPE[room])


@cache
def furniture_of(size: str) -> dict[int, tuple[str, ...]]:
    """Scene number -> its furniture. No two scenes of a room kind have the same, so unseen rooms are unseen."""
    houses: dict[int, tuple[str, ...]] = {}
    for name, room in ROOMS.items():
        rng = random.Random(f"{size}/{name}")
        taken: set[tuple[str, ...]] = set()
        for scene in constants.SCENE_TYPE[name]:
            chosen = _draw_furniture(rng, room, SIZES[size])
            while chosen in taken:
                chosen = _draw_furniture(rng, room, SIZES[size])
            taken.add(chosen)
            houses[scene] = chosen
    return houses


def _draw_furniture(rng: random.Random, room: Room, size: Size) -> tuple[str, ...]:
    pool = [kind for kind in room.furniture for _ in range(min(size.pieces, _MOST_PIECES.get(kind, 1)))]
    return tuple(sorted(rng.sample(pool, size.receptacles)))
