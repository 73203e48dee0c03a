"""One product: from an entry of the official items file to what pages, goals and rewards need."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_envs.errors import CatalogueError

__all__ = ["CatalogueError", "Instruction", "Product", "parse_product"]

MAX_ASIN_CHARS = 10
DEFAULT_PRICE = 100.0
"""US dollars; price of products that list none."""
NO_ATTRIBUTES = ("DUMMY_ATTR",)


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a person asked for, from the human instructions file."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """A product as it is shown and rewarded. Prices are US dollars."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    price_tag: str
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    category: str
    query: str
    product_category: str
    prices: tuple[float, ...] = (DEFAULT_PRICE,)
    """One price, or the two ends of a range."""
    instructions: tuple[Instruction, ...] = ()
    """What people asked for of which this product is the answer."""
    instruction: str | None = None
    """Stem of the synthetic instructions, where it has any."""
    instruction_attributes: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """For ``from_json``."""
        people = [[entry.text, entry.attributes, entry.options] for entry in self.instructions]
        values = [getattr(self, name) for name in _PLAIN]
        return json.dumps([*values, people], separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, record: bytes) -> Product:
        """What ``to_json`` wrote."""
        *values, people = json.loads(record)
        fields = dict(zip(_PLAIN, values, strict=True))
        for name in ("bullets", "attributes", "prices", "instruction_attributes"):
            fields[name] = tuple(fields[name])
        fields["options"] = {name: tuple(choices) for name, choices in fields["options"].items()}
        fields["instructions"] = tuple(Instruction(text, tuple(a), tuple(o)) for text, a, o in people)
        return cls(**fields)

    @property
    def document(self) -> str:
        """What the search index holds of it."""
        choices = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        first = self.bullets[0] if self.bullets else ""
        return f"{self.title} {self.description} {first} {choices}".lower()


_PLAIN = tuple(name for name in Product.__dataclass_fields__ if name != "instructions")


def parse_product(entry: Mapping[str, Any], attributes: Any, people: Any, place: str) -> Product:
    """Read one entry of the items file.

    Args:
        entry: the entry.
        attributes: the product's entry of the attributes file, None where it has none.
        people: the product's list in the human instructions file, None where it has none.
        place: where this is, for messages.

    Raises:
        CatalogueError: a field is missing or of the wrong type.
    """
    read = _Reader(entry, place)
    about = _Reader({} if attributes is None else attributes, f"{place}: its entry in the attributes file")
    price_tag, prices = parse_price(read.text("pricing"))
    bullets = entry.get("small_description")
    instruction = about.entry.get("instruction")
    return Product(
        asin=read.text("asin", required=True),
        title=read.text("name", required=True),
        description=read.text("full_description"),
        bullets=read.texts("small_description") if isinstance(bullets, list) else (read.text("small_description"),),
        price_tag=price_tag,
        prices=prices,
        options=_options(entry.get("customization_options"), place),
        attributes=about.texts("attributes") if "attributes" in about.entry else NO_ATTRIBUTES,
        category=read.text("category", required=True),
        query=read.text("query", required=True).lower().strip(),
        product_category=read.text("product_category", required=True),
        instructions=_instructions(people, place),
        instruction=None if instruction is None else about.text("instruction"),
        instruction_attributes=about.texts("instruction_attributes"),
    )


def parse_price(text: str) -> tuple[str, tuple[float, ...]]:
    """Tag and one or two prices in dollars out of a price text such as "$12.50" or "$1,000 - $1,200".

    A text without any readable price counts as none given, where the original program stops.
    """
    amounts = []
    for part in text.split("$")[1:3]:
        digits = re.sub(r"[^0-9.]", "", part)
        try:
            amounts.append(float(digits))
        except ValueError:
            amounts.append(math.inf)
    if not amounts or not all(map(math.isfinite, amounts)):
        amounts = [DEFAULT_PRICE]
    return " to ".join(f"${amount}" for amount in amounts), tuple(amounts)


def _options(choices: Any, place: str) -> dict[str, tuple[str, ...]]:
    if not choices:
        return {}
    if not isinstance(choices, dict):
        raise CatalogueError(f"{place}: 'customization_options' must be an object, not {_kind(choices)}.")
    options: dict[str, tuple[str, ...]] = {}
    for name, values in choices.items():
        if values is None:
            continue
        if not isinstance(values, list):
            raise CatalogueError(f"{place}: option {name!r} must be a list of values, not {_kind(values)}.")
        if not all(isinstance(value, dict) and isinstance(value.get("value"), str) for value in values):
            raise CatalogueError(f"{place}: option {name!r} must list objects with a text 'value'.")
        options[name.lower()] = tuple(value["value"].strip().replace("/", " | ").lower() for value in values)
    return options


def _instructions(people: Any, place: str) -> tuple[Instruction, ...]:
    if people is None:
        return ()
    if not isinstance(people, list):
        raise CatalogueError(f"{place}: its human instructions must be a list, not {_kind(people)}.")
    read = []
    for entry in people:
        reader = _Reader(entry, f"{place}: a human instruction of it")
        attributes = reader.texts("instruction_attributes")
        if attributes:
            text = reader.text("instruction", required=True)
            read.append(Instruction(text, attributes, reader.texts("instruction_options")))
    return tuple(read)


class _Reader:
    """Fields of one JSON object, with messages that say where it is."""

    def __init__(self, entry: Any, place: str) -> None:
        if not isinstance(entry, Mapping):
            raise CatalogueError(f"{place} must be an object, not {_kind(entry)}.")
        self.entry = entry
        self._place = place

    def text(self, name: str, required: bool = False) -> str:
        """A text; missing or null counts as empty unless it is required."""
        value = self.entry.get(name)
        if value is None and not required:
            return ""
        if not isinstance(value, str):
            problem = "is missing" if name not in self.entry else f"must be text, not {_kind(value)}"
            raise CatalogueError(f"{self._place}: {name!r} {problem}.")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; missing or null counts as empty."""
        value = self.entry.get(name)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise CatalogueError(f"{self._place}: {name!r} must be a list of texts.")
        return tuple(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
