"""Names of things of one kind, such as estimators or policy losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from openrlhf_gagpo.errors import GagpoError

__all__ = ["Registry"]

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by name. A name is given once.

    Args:
        kind: what the entries are, in words, for errors.
        error: what is raised for a taken or unknown name.
    """

    def __init__(self, kind: str, error: type[GagpoError]) -> None:
        self._kind = kind
        self._error = error
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register ``entry`` as ``name``. Raises the registry's error for a name that is taken."""
        if name in self._entries:
            raise self._error(f"{self._kind} {name!r} exists already; choose another name")
        self._entries[name] = entry

    def get(self, name: str) -> Entry:
        """Return the entry called ``name``. Raises the registry's error with the known names."""
        if name not in self._entries:
            raise self._error(f"unknown {self._kind} {name!r}; choose one of {', '.join(self.names())}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        return tuple(sorted(self._entries))

    def snapshot(self) -> Mapping[str, Entry]:
        """Return what is registered now."""
        return dict(self._entries)

    def restore(self, entries: Mapping[str, Entry]) -> None:
        """Register exactly what a ``snapshot`` holds, for a plugin that failed half-way."""
        self._entries = dict(entries)
