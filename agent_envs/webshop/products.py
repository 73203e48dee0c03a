"""One product: from an entry of the official items file to what pages, goals and rewards need."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent_envs.errors import CatalogueError

__all__ = ["CatalogueError", "Instruction", "LongTexts", "Product", "parse_product"]

MAX_ASIN_CHARS = 10
DEFAULT_PRICE = 100.0
"""US dollars; price of products that list none."""
NO_ATTRIBUTES = ("DUMMY_ATTR",)

_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Instruction:
    """What a person asked for, from the human instructions file."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


class LongTexts(NamedTuple):
    """What only the pages below a product's own page show: most of an entry, and seldom asked for."""

    description: str
    bullets: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """For ``from_bytes``; compressed."""
        return zlib.compress(_encode(self).encode())

    @classmethod
    def from_bytes(cls, record: bytes) -> LongTexts:
        """What ``to_bytes`` wrote."""
        description, bullets = json.loads(zlib.decompress(record))
        return cls(description, tuple(bullets))


@dataclass(frozen=True, slots=True)
class Product:
    """A product as it is shown and rewarded. Prices are US dollars."""

    asin: str
    title: str
    price_tag: str
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    category: str
    query: str
    product_category: str
    long_texts: Callable[[], LongTexts] = field(repr=False, compare=False)
    """A function, so that they are read only when needed."""
    prices: tuple[float, ...] = (DEFAULT_PRICE,)
    """One price, or the two ends of a range."""
    instructions: tuple[Instruction, ...] = ()
    """What people asked for of which this product is the answer."""
    instruction: str | None = None
    """Stem of the synthetic instructions, where it has any."""
    instruction_attributes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        return self.long_texts().description

    @property
    def bullets(self) -> tuple[str, ...]:
        """The features."""
        return self.long_texts().bullets

    def to_json(self) -> bytes:
        """For ``from_json``; without the long texts."""
        people = [[entry.text, entry.attributes, entry.options] for entry in self.instructions]
        names = [self.asin, self.title, self.price_tag, self.category, self.query, self.product_category]
        goal = [self.instruction, self.instruction_attributes]
        return _encode([*names, self.options, self.attributes, self.prices, *goal, people]).encode()

    @classmethod
    def from_json(cls, record: bytes, long_texts: Callable[[], LongTexts]) -> Product:
        """What ``to_json`` wrote."""
        asin, title, tag, category, query, path, options, attributes, prices, stem, asked, people = json.loads(record)
        return cls(
            asin=asin,
            title=title,
            price_tag=tag,
            options={name: tuple(values) for name, values in options.items()},
            attributes=tuple(attributes),
            category=category,
            query=query,
            product_category=path,
            long_texts=long_texts,
            prices=tuple(prices),
            instructions=tuple(Instruction(text, tuple(a), tuple(o)) for text, a, o in people),
            instruction=stem,
            instruction_attributes=tuple(asked),
        )

    @property
    def document(self) -> str:
        """What the search index holds of it."""
        choices = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        description, bullets = self.long_texts()
        return f"{self.title} {description} {bullets[0] if bullets else ''} {choices}".lower()


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
    listed = isinstance(entry.get("small_description"), list)
    bullets = read.texts("small_description") if listed else (read.text("small_description"),)
    long_texts = LongTexts(read.text("full_description"), bullets)
    instruction = about.entry.get("instruction")
    return Product(
        asin=read.text("asin", required=True),
        title=read.text("name", required=True),
        price_tag=price_tag,
        prices=prices,
        options=_options(entry.get("customization_options"), place),
        attributes=about.texts("attributes") if "attributes" in about.entry else NO_ATTRIBUTES,
        category=read.text("category", required=True),
        query=read.text("query", required=True).lower().strip(),
        product_category=read.text("product_category", required=True),
        long_texts=lambda: long_texts,
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
