"""The official catalogue files: which ones a folder has, and reading them without holding all of them at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent_envs.webshop.jsonstream import stream_list, stream_object
from agent_envs.webshop.products import MAX_ASIN_CHARS, CatalogueError, Product, parse_product
from agent_envs.webshop.shelf import Shelf

__all__ = ["FileSet", "Sources", "find_sources", "read_products"]

FileSet = Literal["auto", "small", "full"]

DATA_VARIABLE = "WEBSHOP_DATA"
_ENDINGS = {"small": "_1000", "full": ""}
_HELP = (
    "run 'gagpo env generate webshop' for a made-up catalogue, or download the official files as the WebShop "
    "repository (princeton-nlp/WebShop) describes, and name their folder with data_dir or the variable WEBSHOP_DATA"
)


@dataclass(frozen=True)
class Sources:
    """Paths of the three files; the human instructions may be missing."""

    items: Path
    attributes: Path
    people: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.items, self.attributes) + ((self.people,) if self.people else ())


def find_sources(data_dir: str | os.PathLike[str] | None, files: FileSet = "auto") -> Sources:
    """The files in ``data_dir`` (default: the folder that ``WEBSHOP_DATA`` names).

    ``small`` means the files of the first 1,000 products (``*_1000.json``), ``full`` those without that ending,
    ``auto`` the small ones where both are there, as the original program does.

    Raises:
        CatalogueError: files are missing.
    """
    name = data_dir if data_dir is not None else os.environ.get(DATA_VARIABLE)
    if not name:
        raise CatalogueError(f"the WebShop environment has no data: {_HELP}.")
    root = Path(name).expanduser()
    if files != "auto" and files not in _ENDINGS:
        raise CatalogueError(f"files of the WebShop environment must be auto, small or full, not {files!r}.")
    missing: list[str] = []
    for ending in _ENDINGS.values() if files == "auto" else (_ENDINGS[files],):
        items, attributes = root / f"items_shuffle{ending}.json", root / f"items_ins_v2{ending}.json"
        absent = [path.name for path in (items, attributes) if not path.is_file()]
        if not absent:
            people = root / "items_human_ins.json"
            return Sources(items, attributes, people if people.is_file() else None)
        missing = absent
    raise CatalogueError(f"{root} has no {' and no '.join(missing)}: {_HELP}.")


def read_products(sources: Sources, scratch: Path, limit: int | None = None) -> Iterator[tuple[Product, bool]]:
    """Products in file order, each id once.

    ``limit`` N means N as the original program does: its catalogue is what remains of the first N entries, its search
    index holds the first N products. Where entries are left out these differ, and products come out that are only
    searchable. The other two files may have any order; what they say waits on the disk of the folder ``scratch``.

    Returns:
        Pairs (product, whether it is in the catalogue).

    Raises:
        CatalogueError: a file cannot be read or does not have the official format.
        OSError: ``scratch`` has no room.
    """
    seen: set[str] = set()
    with tempfile.TemporaryFile(dir=scratch) as first, tempfile.TemporaryFile(dir=scratch) as second:
        attributes, people = Shelf(first), Shelf(second)
        for shelf, path in ((attributes, sources.attributes), (people, sources.people)):
            for name, value in stream_object(path) if path else ():
                shelf.put(name, value)
        for number, entry in enumerate(stream_list(sources.items)):
            if limit is not None and len(seen) >= limit:
                return
            place = f"{sources.items.name}, entry {number}"
            asin = entry.get("asin") if isinstance(entry, dict) else None
            if not isinstance(asin, str):
                raise CatalogueError(f"{place} has no text 'asin'; every product needs one.")
            if asin == "nan" or len(asin) > MAX_ASIN_CHARS or asin in seen:
                continue
            seen.add(asin)
            yield parse_product(entry, attributes.get(asin), people.get(asin), place), limit is None or number < limit
