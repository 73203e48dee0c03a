"""The official catalogue files: which ones a folder has, and reading them without holding all of them at once."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent_envs.webshop.products import MAX_ASIN_CHARS, CatalogueError, Product, parse_product

__all__ = ["FileSet", "Sources", "find_sources", "read_products"]

FileSet = Literal["auto", "small", "full"]

DATA_VARIABLE = "WEBSHOP_DATA"
_ENDINGS = {"small": "_1000", "full": ""}
_CHUNK_CHARS = 1 << 20
_LARGEST_ENTRY_CHARS = 1 << 25
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


def read_products(sources: Sources, limit: int | None = None) -> Iterator[tuple[Product, bool]]:
    """Products in file order, each id once.

    ``limit`` N means N as the original program does: its catalogue is what remains of the first N entries, its search
    index holds the first N products. Where entries are left out these differ, and products come out that are only
    searchable.

    Returns:
        Pairs (product, whether it is in the catalogue).

    Raises:
        CatalogueError: a file cannot be read or does not have the official format.
    """
    attributes = _read_object(sources.attributes)
    people = _read_object(sources.people) if sources.people else {}
    seen: set[str] = set()
    for number, entry in enumerate(_stream_list(sources.items)):
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


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise CatalogueError(f"{path} cannot be read as JSON ({error}); generate or download it again.") from error
    if not isinstance(content, dict):
        raise CatalogueError(f"{path} must hold one JSON object with product ids as its names.")
    return content


def _stream_list(path: Path) -> Iterator[Any]:
    """Elements of a JSON list, one by one: the full file would take many times its size as Python objects."""
    decoder = json.JSONDecoder()
    buffer, at, started, ended = "", 0, False, False
    try:
        with path.open("rb") as raw:
            # Some tools begin a file with a byte order mark, which is no JSON.
            file = codecs.getreader("utf-8-sig")(raw)
            while not ended:
                chunk = file.read(_CHUNK_CHARS)
                ended = not chunk
                buffer, at = buffer[at:] + chunk, 0
                if not started:
                    if not buffer.lstrip().startswith("[") and (buffer.strip() or ended):
                        raise CatalogueError(f"{path} must hold one JSON list of products.")
                    if not buffer.strip():
                        continue
                    at, started = buffer.index("[") + 1, True
                while True:
                    next_at = _skip(buffer, at, " \t\r\n,")
                    if next_at == len(buffer):
                        break
                    if buffer[next_at] == "]":
                        return
                    try:
                        value, end = decoder.raw_decode(buffer, next_at)
                    except json.JSONDecodeError:
                        # Whether the entry is broken or only incomplete shows when there is more of it.
                        if ended or len(buffer) - next_at > _LARGEST_ENTRY_CHARS:
                            raise
                        break
                    # A number at the very end of what was read may go on.
                    if end == len(buffer) and not ended:
                        break
                    yield value
                    at = end
        raise CatalogueError(f"{path} ends before its list of products does; generate or download it again.")
    except (OSError, ValueError, RecursionError) as error:
        raise CatalogueError(f"{path} cannot be read as JSON ({error}); generate or download it again.") from error


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
