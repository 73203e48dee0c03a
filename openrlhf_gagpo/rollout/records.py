"""Episodes on disk: gzip-compressed JSON lines, one line per step.

Line 1 is a header with the format's name, its version and the number of episodes. Then, for every episode, one line of
kind "episode" (its identity, outcome and number of steps) followed by one line of kind "step" per step, which repeats
the identity and may carry the step's credit. The counts show whether a file was cut short.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from openrlhf_gagpo.errors import EpisodeFileError
from openrlhf_gagpo.rollout.types import Episode, Step

__all__ = ["StepKey", "read_credit", "read_episodes", "read_records", "write_episodes"]

StepKey = tuple[str, str, int]
"""Group, trajectory and index of a step."""

_FORMAT = "gagpo-episodes"
_VERSION = 4
# What sampled a step means nothing to another process.
_STEP_FIELDS = tuple(field.name for field in fields(Step) if field.name != "sampled_by")
# The traceback of a fault is in the run folder, once, and what only serves to measure gains is not needed after that.
_UNRECORDED = ("steps", "traceback", "answers", "final_prompt_ids")
_EPISODE_FIELDS = tuple(field.name for field in fields(Episode) if field.name not in _UNRECORDED)
_ADDED: Mapping[int, Mapping[str, tuple[str, ...]]] = {
    2: {"step": ("info",), "episode": ("info", "fault")},
    3: {"step": ("sequence",), "episode": ()},
    4: {"step": ("messages",), "episode": ("cached_tokens",)},
}
"""Fields that a version added; records of earlier versions lack them and are read with their defaults."""
_IDENTITY = ("task", "group", "trajectory", "env_seed")


def write_episodes(
    path: str | os.PathLike[str],
    episodes: Sequence[Episode],
    advantages: Mapping[StepKey, Mapping[str, float]] | None = None,
) -> None:
    """Write ``episodes`` to ``path``, completely or not at all. Equal input gives equal bytes.

    Args:
        path: usually ends in ``.jsonl.gz``; its folder exists.
        episodes: ``Episode.extra`` must be JSON: string keys, and lists rather than tuples.
        advantages: credit values (advantage, return, value, td_residual...) by (group, trajectory, step index).
            Steps without an entry, for instance of dropped groups, are written without credit.

    Raises:
        ValueError: ``advantages`` names a step that no episode has.
        TypeError: a field holds a value that JSON cannot represent.
    """
    target = Path(path)
    credit = {key: {name: float(value) for name, value in row.items()} for key, row in (advantages or {}).items()}
    strangers = credit.keys() - {_key(episode, step.index) for episode in episodes for step in episode.steps}
    if strangers:
        raise ValueError(f"credit is given for step {min(strangers)}, which is in none of the episodes")
    encoder = json.JSONEncoder(separators=(",", ":"), default=_refuse)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with (
            open(partial, "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
            io.TextIOWrapper(packed, encoding="ascii", newline="\n") as lines,
        ):
            for record in _records(episodes, credit):
                lines.write(encoder.encode(record) + "\n")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def read_records(path: str | os.PathLike[str]) -> tuple[list[Episode], dict[StepKey, dict[str, float]]]:
    """Read back the episodes and the ``advantages`` of ``write_episodes`` (empty if none were written).

    Both are exactly as they were written, and the episodes are in the same order.

    Raises:
        EpisodeFileError: the file is of another kind or cut short; the message names the line.
        OSError: the file cannot be opened.
    """
    lines = _Lines(path)
    records = lines.read()
    header = lines.take(records, "the header")
    if header.get("format") != _FORMAT or not isinstance(header.get("episodes"), int):
        raise lines.error(f"is not the header of the {_FORMAT} format")
    version = header.get("version")
    if not isinstance(version, int) or not 1 <= version <= _VERSION:
        raise lines.error(f"has version {version} of {_FORMAT}, and this release reads versions 1 to {_VERSION}")
    step_fields, episode_fields = _fields("step", version), _fields("episode", version)
    episodes: list[Episode] = []
    credit: dict[StepKey, dict[str, float]] = {}
    for number in range(header["episodes"]):
        record = lines.take(records, f"episode {number + 1} of {header['episodes']}")
        count = record.pop("steps", None)
        if record.pop("kind", None) != "episode" or not isinstance(count, int) or record.keys() != episode_fields:
            raise lines.error("is not a complete episode record")
        episode = Episode(steps=[], **record)
        for index in range(count):
            record = lines.take(records, f"step {index} of episode {episode.trajectory!r}")
            values = record.pop("credit", None)
            kind, identity = record.pop("kind", None), [record.pop(name, None) for name in _IDENTITY]
            if kind != "step" or record.keys() != step_fields:
                raise lines.error("is not a complete step record")
            if identity != [getattr(episode, name) for name in _IDENTITY]:
                raise lines.error(f"belongs to another episode than {episode.trajectory!r}")
            step = Step(**record)
            episode.steps.append(step)
            if values is not None:
                credit[_key(episode, step.index)] = values
        episodes.append(episode)
    if next(records, None) is not None:
        raise lines.error("follows the last episode")
    return episodes, credit


def read_episodes(path: str | os.PathLike[str]) -> list[Episode]:
    """Return the episodes of ``read_records``, with the same errors."""
    return read_records(path)[0]


def read_credit(path: str | os.PathLike[str]) -> dict[StepKey, dict[str, float]]:
    """Return the credit of ``read_records``, with the same errors."""
    return read_records(path)[1]


def _fields(kind: str, version: int) -> set[str]:
    """Return the fields of a record of ``kind`` as ``version`` wrote it."""
    later = {name for added, kinds in _ADDED.items() if added > version for name in kinds[kind]}
    return set(_STEP_FIELDS if kind == "step" else _EPISODE_FIELDS) - later


def _key(episode: Episode, index: int) -> StepKey:
    return (episode.group, episode.trajectory, index)


def _refuse(value: object) -> object:
    raise TypeError(f"an episode holds a {type(value).__name__}, which JSON cannot hold: use plain Python values")


def _records(episodes: Sequence[Episode], credit: Mapping[StepKey, dict[str, float]]) -> Iterator[dict[str, Any]]:
    yield {"format": _FORMAT, "version": _VERSION, "episodes": len(episodes)}
    for episode in episodes:
        head = {name: getattr(episode, name) for name in _EPISODE_FIELDS}
        yield {"kind": "episode", "steps": len(episode.steps), **head}
        identity = {name: getattr(episode, name) for name in _IDENTITY}
        for step in episode.steps:
            record = {"kind": "step", **identity, **{name: getattr(step, name) for name in _STEP_FIELDS}}
            values = credit.get(_key(episode, step.index))
            yield record if values is None else {**record, "credit": values}


class _Lines:
    """The records of a file, with their line numbers for errors."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._number = 0

    def read(self) -> Iterator[dict[str, Any]]:
        try:
            with gzip.open(self._path, "rt", encoding="ascii", newline="\n") as lines:
                for self._number, line in enumerate(lines, start=1):
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise self.error("is not a JSON object")
                    yield record
        except gzip.BadGzipFile as error:
            raise EpisodeFileError(f"{self._path} is not an episode file: it is not gzip-compressed") from error
        except (EOFError, zlib.error) as error:
            raise EpisodeFileError(
                f"{self._path} is cut short or damaged after line {self._number}: write it again"
            ) from error
        except json.JSONDecodeError as error:
            raise self.error("is not JSON") from error
        except UnicodeDecodeError as error:
            raise EpisodeFileError(
                f"{self._path} is not an episode file: it holds more than ASCII after line {self._number}"
            ) from error

    def take(self, records: Iterator[dict[str, Any]], what: str) -> dict[str, Any]:
        record = next(records, None)
        if record is None:
            raise EpisodeFileError(f"{self._path} is cut short: {what} is missing after line {self._number}")
        return record

    def error(self, what: str) -> EpisodeFileError:
        return EpisodeFileError(f"{self._path}, line {self._number} {what}: this is not a file of played episodes")
