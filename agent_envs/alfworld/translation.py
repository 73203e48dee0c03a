"""Translations of games for the native engine, kept on disk.

Only games that ``known`` cannot read need one. Translating takes nearly all of their first reset (0.2 to 0.4 s at the
official size) and depends on the game's PDDL alone, so it is done once per machine: one process translates, the others
that want the same game meanwhile (the members of a rollout group) wait for it and read the result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fast_downward
from fast_downward.translate import pddl

from agent_envs.alfworld.facts import Fact, Typed, fact_of
from agent_envs.cache import default_cache, locked

__all__ = ["Description", "Translation", "describe", "translated"]

# Part of every key: raise it when ``Translation`` or ``_translate`` changes, and old files are not read.
_FORMAT = 2
_LOCKS = 64
# Translating takes a second or two; a holder that takes longer is stopped or hangs.
_LOCK_TIMEOUT_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """What a game's PDDL says. Lists and not tuples, as JSON gives them back."""

    objects: dict[str, str]
    """Thing -> its type."""
    parameters: dict[str, list[list[str]]]
    """Action -> (name, type) of its parameters."""
    changing: list[str]
    """Predicates that some action changes."""
    types: dict[str, list[str]]
    """Type -> its ancestors, the last declared first."""
    start: list[list[str]]
    """Predicate and arguments of what holds at the beginning. The task's numbers (costs, distances) are no facts."""

    def facts(self) -> Iterator[Fact]:
        """What holds at the beginning."""
        things = self.things()
        return (fact_of(things, predicate, names) for predicate, *names in self.start)

    def things(self) -> dict[str, Typed]:
        """All things by name."""
        return {thing[0]: thing for thing in self.objects.items()}

    def kinds(self) -> dict[str, frozenset[str]]:
        """Type -> the types that count as it, itself included."""
        return {
            kind: frozenset(other for other, ancestors in self.types.items() if other == kind or kind in ancestors)
            for kind in self.types
        }


@dataclass(frozen=True)
class Translation:
    """What the native engine needs to play a game."""

    description: Description
    sas: str
    """The task as the native engine reads it; no operator is left out."""


def describe(objects: Iterable[Any], actions: Sequence[Any], types: Sequence[Any], init: Iterable[Any]) -> Description:
    """What the parts of a task say that the planner's parser has read."""
    return Description(
        objects={thing.name: thing.type_name for thing in objects},
        parameters={
            action.name: [[parameter.name.strip("?"), parameter.type_name] for parameter in action.parameters]
            for action in actions
        },
        changing=sorted({effect.literal.predicate for action in actions for effect in action.effects}),
        # ALFRED declares "object", which is also the root of all types; as in the stock engine, the root counts.
        types={kind.name: list(kind.supertype_names) for kind in reversed(types)},
        start=[[atom.predicate, *atom.args] for atom in init if isinstance(atom, pddl.Atom) and atom.predicate != "="],
    )


def translated(domain: str, problem: str, cache_dir: Path | None = None) -> Translation:
    """The translation of a game, from ``cache_dir`` (default: the user's cache folder) if it is there.

    A cache that cannot be read or written, or is held by another process for too long, costs time and nothing else.
    """
    found = None
    try:
        folder = cache_dir if cache_dir is not None else default_cache("alfworld")
        key = hashlib.sha256("\0".join((str(_FORMAT), _translator(), domain, problem)).encode()).hexdigest()[:32]
        path = folder / key[:2] / f"{key}.z"
        found = _read(path)
        if found is not None:
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{int(key, 16) % _LOCKS:02}.lock", _LOCK_TIMEOUT_S):
            found = _read(path)
            if found is None:
                found = _translate(domain, problem)
                _write(path, found)
            return found
    except OSError as error:
        # Without the file's name, which differs from game to game: the same trouble is told of once.
        _warn(
            f"translations of ALFWorld games cannot be kept ({error.strerror or error}), so that every process makes "
            "its own; set cache_dir to a folder that can be written"
        )
        return found or _translate(domain, problem)


def _translate(domain: str, problem: str) -> Translation:
    # Without optimisation every operator is kept, and the engine shows them all.
    task, sas = fast_downward.pddl2sas(domain, problem)
    return Translation(describe(task.objects, task.actions, task.types, task.init), sas)


def _read(path: Path) -> Translation | None:
    """None where there is nothing, or something that was not written whole."""
    try:
        content = json.loads(zlib.decompress(path.read_bytes()))
        return Translation(Description(**content["description"]), content["sas"])
    except (OSError, ValueError, TypeError, KeyError, zlib.error):
        return None


def _write(path: Path, translation: Translation) -> None:
    content: dict[str, Any] = asdict(translation)
    for left in path.parent.glob(f"{path.stem}.draft*"):
        left.unlink(missing_ok=True)  # by a process that was killed while it wrote
    draft = path.with_suffix(f".draft{os.getpid()}")
    try:
        draft.write_bytes(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), level=1))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@cache
def _translator() -> str:
    return version("fast-downward-textworld")


@cache
def _warn(message: str) -> None:
    _log.warning(message)
