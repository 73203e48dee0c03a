"""The shop's pages as a reader sees them: pieces of text, some of which can be clicked.

Wording, order and quirks are those of the web pages of princeton-nlp/WebShop, which agents are trained on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from agent_envs.webshop.catalogue import Card
from agent_envs.webshop.products import Product

__all__ = [
    "BACK",
    "BUY",
    "NEXT",
    "PREV",
    "RESULTS_PER_PAGE",
    "SEARCH",
    "SEPARATOR",
    "SUB_PAGES",
    "Kind",
    "Page",
    "Piece",
    "done_page",
    "index_page",
    "item_page",
    "results_page",
    "rich_text",
    "segments",
    "sub_page",
]

SEPARATOR = " [SEP] "
RESULTS_PER_PAGE = 10

SEARCH, BACK, NEXT, PREV, BUY = "Search", "Back to Search", "Next >", "< Prev", "Buy Now"
ATTRIBUTES = "Attributes"
SUB_PAGES = ("Description", "Features", "Reviews", ATTRIBUTES)
RATING = "N.A."

_HTML_SPACES = " \n\t\f\r"
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"})


class Kind(Enum):
    """What a piece of text is."""

    TEXT = "text"
    BUTTON = "button"
    LINK = "link"
    OPTION = "option"


class Piece(NamedTuple):
    """A piece of visible text."""

    text: str
    kind: Kind = Kind.TEXT


class Target(NamedTuple):
    """The thing that a click on a name selects."""

    kind: Kind
    option: str = ""
    """Name of the option that a value belongs to."""


@dataclass(frozen=True)
class Page:
    """One page. ``head`` holds the instruction, ``body`` everything after it."""

    head: tuple[Piece, ...]
    body: tuple[Piece, ...]
    targets: Mapping[str, Target] = field(default_factory=dict)
    """Targets by the name to click, in the order in which the page offers them."""
    has_search_bar: bool = False


def index_page(instruction: str) -> Page:
    """Build the page on which a session starts."""
    head = _pieces(["WebShop", "Instruction: ", instruction])
    return _page(head, [Piece(SEARCH, Kind.BUTTON)], has_search_bar=True)


def results_page(instruction: str, cards: Sequence[Card], page: int, total: int) -> Page:
    """Build one page of a list of ``total`` products; ``cards`` are those on it."""
    body = [_button(BACK), Piece(f"Page {page} (Total results: {total})")]
    body += [_button(PREV)] * (page > 1) + [_button(NEXT)]
    for asin, title, price_tag in cards:
        body += [*_pieces([asin], Kind.LINK), *_pieces([title, price_tag])]
    return _page(_head(instruction), body)


def item_page(instruction: str, product: Product, show_attributes: bool) -> Page:
    """Build the page of a product with its options."""
    body = [_button(BACK), _button(PREV)]
    for name, values in product.options.items():
        body += [*_pieces([name]), *_pieces(values, Kind.OPTION)]
    body += [*_pieces([product.title]), Piece(f"Price: {product.price_tag}"), Piece(f"Rating: {RATING}")]
    body += [_button(name) for name in SUB_PAGES if show_attributes or name != ATTRIBUTES]
    body.append(_button(BUY))
    return _page(_head(instruction), body, product.options)


def sub_page(instruction: str, product: Product, name: str) -> Page:
    """Build a page with more about a product; ``name`` is one of ``SUB_PAGES``. There are never any reviews."""
    texts: Iterable[str] = ()
    if name == "Description":
        texts = [product.description]
    elif name == "Features":
        texts = [f" {bullet}" for bullet in product.bullets]
    elif name == ATTRIBUTES:
        texts = [f" {attribute}" for attribute in product.attributes]
        texts = [*texts, product.category, product.query, product.product_category]
    return _page(_head(instruction), [_button(BACK), _button(PREV), *_pieces(texts)])


def done_page(asin: str, options: Mapping[str, str], reward: float) -> Page:
    """Build the page after a purchase. The form's fields about the goal are empty, as agents see them upstream."""
    chosen = json.dumps(dict(options), sort_keys=True).translate(_ESCAPES)
    texts = ["Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)"]
    texts += ["Purchased", "asin", asin, "options", chosen]
    for name in ("attrs", "category", "query", "product category"):
        texts += [name, "None"]
    texts += ["Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category"]
    texts += ["query", "Goal ", "None", "Reward", "Your score (min 0.0, max 1.0)", str(reward)]
    return _page((), _pieces([*texts, "Reward Details ", "None"]))


def segments(pieces: Iterable[Piece]) -> str:
    """Return plain observation text: all pieces in one line."""
    return SEPARATOR.join(piece.text.strip() for piece in pieces)


def rich_text(pieces: Iterable[Piece], url: str, visited: Collection[str]) -> str:
    """Return observation text that marks what can be clicked and what has been.

    An option counts as clicked if its value occurs in double quotes in the URL, for whatever reason.
    """
    clicked, lines = "", []
    for text, kind in pieces:
        if kind is Kind.BUTTON:
            lines.append(f"[button] {text} [button_]\n")
        elif kind is Kind.LINK:
            mark = "clicked button" if text in visited else "button"
            lines.append(f"\n[{mark}] {text} [{mark}_]\n")
        elif kind is Kind.OPTION:
            mark = "button"
            if f'"{text}"' in url:
                mark, clicked = "clicked button", f"You have clicked {text}.\n{clicked}"
            lines.append(f"  [{mark}] {text} [{mark}_]\n")
        else:
            lines.append(f"{text}\n")
    return clicked + "".join(lines)


def _head(instruction: str) -> tuple[Piece, ...]:
    return (Piece("Instruction:"), *_pieces([instruction]))


def _button(text: str) -> Piece:
    return Piece(text, Kind.BUTTON)


def _pieces(texts: Iterable[str], kind: Kind = Kind.TEXT) -> tuple[Piece, ...]:
    """Make the pieces that an HTML parser makes of these texts: blank ones shrink to one character or vanish."""
    pieces = []
    for text in texts:
        if text.strip(_HTML_SPACES):
            pieces.append(Piece(text, kind))
        elif text and "\n" not in text:
            pieces.append(Piece(" ", kind))
    return tuple(pieces)


def _page(
    head: tuple[Piece, ...],
    body: Sequence[Piece],
    options: Mapping[str, Sequence[str]] | None = None,
    has_search_bar: bool = False,
) -> Page:
    targets = {piece.text.lower(): Target(piece.kind) for piece in body if piece.kind is Kind.BUTTON}
    targets.update({piece.text.lower(): Target(piece.kind) for piece in body if piece.kind is Kind.LINK})
    # If several options have equal values, the last one wins and takes the place of the first.
    for name, values in (options or {}).items():
        for value in values:
            targets[value] = Target(Kind.OPTION, name)
    return Page(head, tuple(body), targets, has_search_bar)
