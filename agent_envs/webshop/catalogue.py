"""All products of a catalogue, read from a packed and memory-mapped copy of the official files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from agent_envs.cache import default_cache
from agent_envs.webshop.indexing import IndexBuilder
from agent_envs.webshop.products import CatalogueError, LongTexts, Product
from agent_envs.webshop.search import Index
from agent_envs.webshop.sources import FileSet, Sources, find_sources, read_products
from agent_envs.webshop.store import Blob, BlobWriter, StoreError, file_digest, open_or_build

__all__ = ["Card", "Catalogue", "load_catalogue"]

_FORMAT = 2
"""Of the packed copy; raise it when anything changes that goes into it."""
_PRODUCTS = "products.bin"
_LONG_TEXTS = "texts.bin"
_CARDS = "cards.bin"
_CACHED_PRODUCTS = 2048
_CACHED_LONG_TEXTS = 512
_CACHED_CARDS = 16384

Card = tuple[str, str, str]
"""Id, title and price tag: what a list of results shows."""


class Catalogue:
    """Products by number (their place in the file) and by id, and the search index over them.

    ``len`` counts the products of the catalogue; the index may hold a few more (see ``read_products``).
    """

    def __init__(self, folder: Path, arrays: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        self._products = Blob(folder / _PRODUCTS, arrays["product_offsets"])
        self._long_texts = Blob(folder / _LONG_TEXTS, arrays["text_offsets"])
        self._cards = Blob(folder / _CARDS, arrays["card_offsets"])
        self._by_asin = arrays["by_asin"]
        self._asins = arrays["asins"]
        self._size = int(notes["size"])
        self._labels = {kind: {text: code for code, text in enumerate(notes[kind])} for kind in ("category", "query")}
        self._codes = {kind: arrays[kind] for kind in self._labels}
        self.low: np.ndarray = arrays["low"]
        """Price, or lower end of its range, per product, US dollars."""
        self.high: np.ndarray = arrays["high"]
        """Upper end of the range; NaN where the price is one number."""
        self.people: np.ndarray = arrays["people"]
        """Number of human instructions per product."""
        self.variants: np.ndarray = arrays["variants"]
        """Number of synthetic goals per product; -1 where it has no synthetic instruction."""
        self.index = Index(arrays, folder)
        self.fingerprint: str = folder.name
        """Changes with the content of the files and the number of products taken."""
        self.product = lru_cache(maxsize=_CACHED_PRODUCTS)(self._product)
        self.long_texts = lru_cache(maxsize=_CACHED_LONG_TEXTS)(self._read_long_texts)
        self.card = lru_cache(maxsize=_CACHED_CARDS)(self._card)

    def __len__(self) -> int:
        return self._size

    def number(self, asin: str) -> int | None:
        """The number of the product with this id; None where there is none."""
        place = int(np.searchsorted(self._asins, asin))
        if place == len(self._asins) or self._asins[place] != asin:
            return None
        number = int(self._by_asin[place])
        return number if number < self._size else None

    def search(self, words: str, limit: int) -> Sequence[int]:
        """Numbers of the best products for ``words``; fewer than ``limit`` where the index goes beyond the catalogue.

        Raises:
            QueryTooLong: too many different words.
        """
        found = self._by_asin[list(self.index.search(words, limit))].tolist() if len(self._by_asin) else []
        return [number for number in found if number < self._size]

    def labelled(self, kind: str, label: str) -> Sequence[int]:
        """Numbers of the products whose ``category`` or ``query`` (``kind``) is ``label``, in file order."""
        code = self._labels[kind].get(label)
        return [] if code is None else np.flatnonzero(self._codes[kind][: self._size] == code).tolist()

    def _product(self, number: int) -> Product:
        return Product.from_json(self._products[number], partial(self.long_texts, number))

    def _read_long_texts(self, number: int) -> LongTexts:
        return LongTexts.from_bytes(self._long_texts[number])

    def _card(self, number: int) -> Card:
        asin, title, price_tag = json.loads(self._cards[number])
        return asin, title, price_tag


def load_catalogue(
    data_dir: str | os.PathLike[str] | None = None,
    files: FileSet = "auto",
    num_products: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Catalogue:
    """The catalogue of a folder with the official files; one object per content and process.

    Args:
        data_dir: see ``find_sources``.
        files: see ``find_sources``.
        num_products: how many entries of the items file to take; None takes all.
        cache_dir: where the packed copy is kept; default ``gagpo/webshop`` in the user's cache folder.

    Raises:
        CatalogueError: files are missing or do not have the official format, or there is no product.
        StoreError: the cache cannot be written.
    """
    if num_products is not None and num_products < 1:
        raise CatalogueError(f"num_products of the WebShop environment must be at least 1, not {num_products}.")
    sources = find_sources(data_dir, files)
    try:
        root = Path(cache_dir).expanduser() if cache_dir is not None else default_cache("webshop")
    except OSError as error:
        raise StoreError(f"there is no folder for the WebShop cache ({error}); set cache_dir to one") from error
    try:
        content = [file_digest(path, root) for path in sources.paths]
    except OSError as error:
        raise CatalogueError(f"{error.filename} cannot be read: {error.strerror}.") from error
    key = hashlib.sha256(json.dumps([_FORMAT, num_products, *content]).encode()).hexdigest()[:24]
    return _open(root / key, sources, num_products)


@lru_cache(maxsize=8)
def _open(folder: Path, sources: Sources, limit: int | None) -> Catalogue:
    arrays, notes = open_or_build(folder, lambda scratch: _pack(scratch, sources, limit))
    return Catalogue(folder, arrays, notes)


def _pack(folder: Path, sources: Sources, limit: int | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    products, cards = BlobWriter(folder / _PRODUCTS), BlobWriter(folder / _CARDS)
    long_texts = BlobWriter(folder / _LONG_TEXTS)
    labels: dict[str, dict[str, int]] = {"category": {}, "query": {}}
    codes = {kind: array("i") for kind in labels}
    low, high, people, variants = array("d"), array("d"), array("q"), array("q")
    asins: list[str] = []
    size = 0
    with tempfile.TemporaryFile(dir=folder) as spill:
        index = IndexBuilder(folder, spill)
        for product, in_catalogue in read_products(sources, folder, limit):
            size += in_catalogue
            asins.append(product.asin)
            products.add(product.to_json())
            long_texts.add(product.long_texts().to_bytes())
            cards.add(json.dumps([product.asin, product.title, product.price_tag]).encode())
            index.add(product.document)
            for kind, known in labels.items():
                codes[kind].append(known.setdefault(getattr(product, kind), len(known)))
            low.append(product.prices[0])
            high.append(product.prices[1] if len(product.prices) > 1 else math.nan)
            people.append(len(product.instructions))
            variants.append(_variants(product))
        if not size:
            raise CatalogueError(f"{sources.items} has no usable product; generate or download it again.")
        by_asin = np.array(sorted(range(len(asins)), key=asins.__getitem__), dtype=np.int64)
        rank = np.empty_like(by_asin)
        rank[by_asin] = np.arange(len(asins))
        arrays = {
            "product_offsets": products.finish(),
            "text_offsets": long_texts.finish(),
            "card_offsets": cards.finish(),
            "by_asin": by_asin,
            "asins": np.array([asins[number] for number in by_asin], dtype=np.str_),
            "low": np.array(low),
            "high": np.array(high),
            "people": np.array(people),
            "variants": np.array(variants),
            **{kind: np.array(values) for kind, values in codes.items()},
            **index.finish(rank),
        }
    return arrays, {"size": size, **{kind: list(known) for kind, known in labels.items()}}


def _variants(product: Product) -> int:
    # The original program stops at an instruction without attributes.
    if product.instruction is None or not product.instruction_attributes:
        return -1
    return _product(len(values) for values in product.options.values())


def _product(factors: Iterable[int]) -> int:
    return min(math.prod(factors), np.iinfo(np.int64).max)
