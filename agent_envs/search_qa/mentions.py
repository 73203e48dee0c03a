"""The names that passages and questions of a generated world mention."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from agent_envs.errors import EnvError

__all__ = ["MENTIONS_FILE", "Mentions", "load_mentions"]

MENTIONS_FILE = "mentions.json"
_WORD = re.compile(r"\w+")


class Mentions:
    """Finds names in texts.

    Args:
        entities: name of each entity -> its other names.
        values: years, countries and whatever else can be an answer but has no article.
    """

    def __init__(self, entities: Mapping[str, Sequence[str]], values: Sequence[str]) -> None:
        self._entities = entities
        self._names = {name: name for name in (*values, *entities)}
        self._names.update((alias, name) for name, aliases in entities.items() for alias in aliases)
        self._longest: dict[str, int] = {}
        """First word of a name -> number of words of the longest name that begins with it."""
        for text in self._names:
            words = _WORD.findall(text)
            self._longest[words[0]] = max(len(words), self._longest.get(words[0], 0))

    def find(self, text: str) -> tuple[str, ...]:
        """Return what ``text`` mentions in order of the first mention, by name even where it has an alias."""
        return tuple(dict.fromkeys(self._names[text[start:end]] for start, end in self._spans(text)))

    def is_entity(self, name: str) -> bool:
        """Return whether there is an article to search for, as opposed to a year or a country."""
        return name in self._entities

    def replace(self, text: str, by: Callable[[str], str]) -> str:
        """Return ``text`` with ``by(name)`` in place of each mention; of overlapping ones, the first and longest."""
        parts, done = [], 0
        for start, end in self._spans(text):
            parts += [text[done:start], by(self._names[text[start:end]])]
            done = end
        return "".join((*parts, text[done:]))

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        words = [(found.start(), found.end()) for found in _WORD.finditer(text)]
        place = 0
        while place < len(words):
            start, first_end = words[place]
            count = min(self._longest.get(text[start:first_end], 0), len(words) - place)
            while count and text[start : words[place + count - 1][1]] not in self._names:
                count -= 1
            if count:
                yield start, words[place + count - 1][1]
            place += count or 1


def load_mentions(data_dir: Path) -> Mentions:
    """Return the mentions of a generated folder; one object per folder and process.

    Raises:
        EnvError: the folder has none, as with official data, or the file is broken.
    """
    path = data_dir / MENTIONS_FILE
    try:
        return _load(path, path.stat().st_mtime_ns)
    except FileNotFoundError as error:
        raise EnvError(
            f"{data_dir} has no {MENTIONS_FILE}, which only generated data has; choose names=shown, or make data with "
            "gagpo env generate search_qa --out DIR"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise EnvError(f"{path} cannot be read ({error}); generate the data again") from error


@lru_cache(maxsize=8)
def _load(path: Path, stamp: int) -> Mentions:
    """Read the file; ``stamp`` makes a replaced file another entry of the cache."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Mentions(content["entities"], content["values"])
