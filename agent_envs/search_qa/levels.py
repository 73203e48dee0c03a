"""How large and how hard a generated world and its questions are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from agent_envs.search_qa.relations import RELATIONS

__all__ = ["LEVELS", "SPLITS", "Level", "Shape"]

SPLITS = ("train", "valid", "test")


class Shape(NamedTuple):
    """A kind of question and the number of articles that answer it."""

    kind: str
    hops: int

    @classmethod
    def of(cls, category: str) -> Shape:
        """Return the shape that a category such as "chain-2" names."""
        kind, _, hops = category.rpartition("-")
        return cls(kind, int(hops))

    @property
    def category(self) -> str:
        """The shape in one word, such as "chain-2"."""
        return f"{self.kind}-{self.hops}"

    @property
    def depth(self) -> int:
        """Searches that have to follow each other, because one needs what another found."""
        return self.hops - 1 if self.kind == "comparison" else self.hops


@dataclass(frozen=True)
class Level:
    """Parameters of a world, of its passages and of the questions about it."""

    shapes: tuple[Shape, ...]
    """They share the questions evenly, as far as there are enough of each."""
    max_steps: int
    """Steps of the longest expert episode and a spare one or two."""
    scale: int = 400
    """Persons, and works; there is a third as many towns, and organisations."""
    tasks: tuple[int, int, int] = (3000, 300, 600)
    """Questions for training, validation and test."""
    relations: tuple[str, ...] = tuple(RELATIONS)
    """Facts that the articles state."""
    wordings: int = 3
    """How many wordings of a fact, and of a question, are in use; with 1, articles are short notes."""
    restated: float = 1.0
    """Share of articles whose first sentence repeats the title."""
    filler: int = 0
    """Words without content in an article or letter, fewer where an article would have more than 100 words."""
    namesakes: int = 0
    """Passages per person about streets and houses that have part of the name."""
    alias_rate: float = 0.0
    """Share of mentions that use a shorter or longer name."""
    distract: float = 0.5
    """Letters and lists per article; each names two entities and answers nothing."""
    topk: int = 3
    """Passages that a search shows."""
    names: Literal["shown", "symbols"] = "shown"

    @property
    def mayors(self) -> bool:
        """Whether articles on towns list their mayors."""
        return any(shape.kind == "temporal" for shape in self.shapes)


def _shapes(fewest: int, most: int) -> tuple[Shape, ...]:
    """Return all kinds with ``fewest`` to ``most`` hops, where a kind exists with so few."""
    least = {"chain": 1, "comparison": 2, "intersection": 1, "temporal": 2}
    return tuple(Shape(kind, hops) for kind, low in least.items() for hops in range(max(low, fewest), most + 1))


LEVELS: Mapping[str, Level] = MappingProxyType(
    {
        "tiny": Level(
            shapes=(Shape("chain", 1), Shape("chain", 2)),
            max_steps=4,
            relations=tuple(name for name in RELATIONS if name not in ("genre", "occupation", "founding year")),
            wordings=1,
            topk=1,
            names="symbols",
        ),
        "small": Level(shapes=_shapes(1, 3), max_steps=5),
        "hard": Level(
            shapes=_shapes(2, 4),
            max_steps=7,
            scale=10_000,
            tasks=(10_000, 1_000, 2_000),
            restated=0.5,
            filler=60,
            namesakes=2,
            alias_rate=0.3,
            distract=3.0,
        ),
    }
)
