"""Writes a made-up catalogue in the three official file formats, for runs without the official data."""

from __future__ import annotations

import json
import os
import random
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agent_envs.declarations import OnProgress
from agent_envs.errors import EnvError
from agent_envs.webshop.vocabulary import BRANDS, CHOICES, EXTRAS, KINDS, STYLES, Kind

__all__ = ["generate"]

_ID_LETTERS = string.digits + string.ascii_uppercase
_ID_LENGTH = 8
# Coprime to the number of ids, so that consecutive numbers get dissimilar ids and no id occurs twice.
_ID_STEP = 1_048_583_201_233
_PROGRESS_STEP = 100
_SENTENCES = (
    "Made with {attribute} in mind, this {name} fits into any day.",
    "Our {name} is {attribute} and was tested by people who use one daily.",
    "You will like how {attribute} this {name} is.",
    "Comes in a recyclable box; please check the size chart before ordering.",
    "{attribute}: one of the reasons why customers come back for this {name}.",
    "If anything is wrong with your {name}, our service answers within a day.",
)


class _Made(NamedTuple):
    """One product in the three files."""

    asin: str
    item: dict[str, Any]
    about: dict[str, Any]
    people: list[dict[str, Any]]


def generate(
    root: str | os.PathLike[str], products: int, seed: int, on_progress: OnProgress | None = None
) -> list[Path]:
    """Write ``products`` products and goals for them to ``root``; older files of the same names are replaced.

    A product is a function of the seed and its number, so a larger catalogue begins with a smaller one.
    ``on_progress`` is called from time to time.

    Returns:
        Paths of ``items_shuffle.json``, ``items_ins_v2.json`` and ``items_human_ins.json``.

    Raises:
        EnvError: the number of products is out of range, or the folder cannot be written.
    """
    most = len(_ID_LETTERS) ** _ID_LENGTH
    if not 1 <= products <= most:
        raise EnvError(f"the number of products to generate must be 1 to {most}, not {products}")
    folder = Path(root).expanduser()
    names = ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json")
    scratch = [folder / f"{name}.part" for name in names]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            scratch[0].open("w", encoding="utf-8") as items,
            scratch[1].open("w", encoding="utf-8") as about,
            scratch[2].open("w", encoding="utf-8") as people,
        ):
            files = (items, about, people)
            for file, bracket in zip(files, "[{{", strict=True):
                file.write(f"{bracket}\n")
            gaps = [""] * 3
            for number in range(products):
                for place, text in enumerate(_lines(_make(seed, number))):
                    if text:
                        files[place].write(gaps[place] + text)
                        gaps[place] = ",\n"
                if on_progress is not None and (number + 1) % _PROGRESS_STEP == 0:
                    on_progress(number + 1, products)
            for file, bracket in zip(files, "]}}", strict=True):
                file.write(f"\n{bracket}\n")
        paths = [folder / name for name in names]
        for part, path in zip(scratch, paths, strict=True):
            part.replace(path)
    except OSError as error:
        raise EnvError(f"the catalogue cannot be written to {folder}: {error.strerror}") from error
    return paths


def _lines(made: _Made) -> Iterator[str]:
    """Yield the product's entry for each file; "" if it has none there."""
    key = json.dumps(made.asin)
    yield json.dumps(made.item, ensure_ascii=False)
    yield f"{key}: {json.dumps(made.about, ensure_ascii=False)}"
    yield f"{key}: {json.dumps(made.people, ensure_ascii=False)}" if made.people else ""


def _make(seed: int, number: int) -> _Made:
    rng = random.Random(f"webshop/{seed}/{number}")
    kind = rng.choice(KINDS)
    name = rng.choice(kind.names)
    attributes = rng.sample(kind.attributes, rng.randint(2, 4))
    options = {
        option: rng.sample(CHOICES[source], rng.randint(2, min(6, len(CHOICES[source]))))
        for option, source in kind.choices.items()
        if rng.random() < 0.85
    }
    asin = _asin(seed, number)
    item = {
        "asin": asin,
        "name": _title(rng, name, attributes, options),
        "full_description": " ".join(_sentences(rng, name, attributes, rng.randint(2, 5))),
        "small_description": list(_sentences(rng, name, attributes, rng.randint(2, 6))),
        "pricing": _pricing(rng, kind),
        "images": [],
        "category": kind.category,
        "query": kind.query,
        "product_category": kind.path,
        "customization_options": {
            option: [{"value": value, "image": None} for value in values] for option, values in options.items()
        },
    }
    asked = rng.sample(attributes, rng.randint(1, min(2, len(attributes))))
    about: dict[str, Any] = {"attributes": attributes, "instruction": None, "instruction_attributes": None}
    if rng.random() < 0.7:
        about["instruction"] = f"Find me {', '.join(asked)} {kind.query}"
        about["instruction_attributes"] = asked
    people = [_request(rng, name, attributes, options)] if rng.random() < 0.8 else []
    return _Made(asin, item, about, people)


def _asin(seed: int, number: int) -> str:
    count = len(_ID_LETTERS) ** _ID_LENGTH
    place = (number * _ID_STEP + random.Random(seed).randrange(count)) % count
    letters = []
    for _ in range(_ID_LENGTH):
        place, digit = divmod(place, len(_ID_LETTERS))
        letters.append(_ID_LETTERS[digit])
    return "B0" + "".join(reversed(letters))


def _title(rng: random.Random, name: str, attributes: Sequence[str], options: dict[str, list[str]]) -> str:
    parts = [f"{rng.choice(BRANDS)} {rng.choice(STYLES)} {name}"]
    parts += [attribute.title() for attribute in attributes if rng.random() < 0.6]
    parts += rng.sample(EXTRAS, rng.randint(0, 2))
    title = ", ".join(parts)
    if options and rng.random() < 0.5:
        title += f" - {', '.join(values[0] for values in options.values())}"
    return title


def _sentences(rng: random.Random, name: str, attributes: Sequence[str], count: int) -> Iterable[str]:
    for sentence in rng.sample(_SENTENCES, count):
        text = sentence.format(name=name.lower(), attribute=rng.choice(attributes))
        yield text[0].upper() + text[1:]


def _pricing(rng: random.Random, kind: Kind) -> str | None:
    """Draw a price, a price range or no price, written as shops write them."""
    price = rng.uniform(kind.cheapest, kind.dearest)
    draw = rng.random()
    if draw < 0.1:
        return None
    return f"${price:,.2f}" if draw < 0.8 else f"${price:,.2f} - ${price * rng.uniform(1.1, 1.8):,.2f}"


def _request(rng: random.Random, name: str, attributes: Sequence[str], options: dict[str, list[str]]) -> dict[str, Any]:
    asked = rng.sample(list(attributes), rng.randint(1, len(attributes)))
    chosen = [rng.choice(values).lower().replace("/", " | ") for values in options.values() if rng.random() < 0.8]
    opening = rng.choice(("i am looking for a", "i need a", "show me a", "i would like to buy a"))
    text = f"{opening} {' '.join(asked)} {name.lower()}"
    if chosen:
        text += f" in {' and '.join(chosen)}"
    return {
        "instruction": f"{text}.",
        "instruction_attributes": asked,
        "instruction_options": chosen,
    }
