"""The facts of all episodes of all sources, kept in memory and beside the records.

The facts of a file are written to a small file in the hidden folder ``.index`` beside it, which is valid for the size
and the time of change that it names. Where that folder cannot be written, the facts live in memory only.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from openrlhf_gagpo.errors import ConfigError, GagpoError, RunFolderError
from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.viewer.facts import EpisodeFacts, EpisodeFile
from openrlhf_gagpo.viewer.runs import logged_stamp
from openrlhf_gagpo.viewer.sources import Part, Source, find_sources

__all__ = ["Listing", "Store"]

_VERSION = 1
_INLINE_S = 0.15
"""Seconds that a page spends on files without an index; a thread goes on with the rest."""
_INLINE_BYTES = 1 << 21
"""Larger files without an index are left to that thread from the start."""
_RESCAN_S = 2.0
_KEPT_EPISODES = 256


@dataclass(frozen=True)
class Listing:
    """What is known of a source at one moment."""

    episodes: list[EpisodeFacts]
    """By part, then number."""
    waiting: int
    """Files that are not read yet."""
    problems: list[str]
    """One sentence for each file that cannot be used."""


@dataclass
class _Entry:
    part: Part
    file: EpisodeFile
    stamp: tuple[int, int]
    facts: list[EpisodeFacts] = field(default_factory=list)
    ready: bool = False
    problem: str = ""


class Store:
    """All sources below the given paths; safe to use from several threads."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._sources = {source.key: source for source in find_sources(self._paths)}
        self._scanned = time.monotonic()
        self._entries: dict[Path, _Entry] = {}
        self._read: OrderedDict[tuple[Path, int, int], PlayedEpisode] = OrderedDict()
        self._lock = threading.RLock()
        self._worker: threading.Thread | None = None

    def sources(self) -> list[Source]:
        """Return all sources; runs that appear later are found within two seconds."""
        with self._lock:
            if time.monotonic() - self._scanned > _RESCAN_S:
                # A folder that was deleted meanwhile is no reason to lose the others.
                with suppress(ConfigError):
                    for source in find_sources([path for path in self._paths if path.exists()]):
                        self._sources.setdefault(source.key, source)
                self._scanned = time.monotonic()
            return list(self._sources.values())

    def source(self, key: str) -> Source | None:
        """Return the source of that name."""
        return self._sources.get(key) or next((item for item in self.sources() if item.key == key), None)

    def listing(self, source: Source, *, wait: bool = False) -> Listing:
        """Return the facts of all episodes that are indexed by now; with ``wait``, of all there are."""
        entries = self._refresh(source)
        deadline = float("inf") if wait else time.monotonic() + _INLINE_S
        for entry in entries:
            if not entry.ready and time.monotonic() < deadline:
                self._load(entry, most=None if wait else _INLINE_BYTES)
        waiting = sum(not entry.ready for entry in entries)
        if waiting:
            self._work_behind()
        return Listing(
            episodes=[facts for entry in entries for facts in entry.facts],
            waiting=waiting,
            problems=[entry.problem for entry in entries if entry.problem],
        )

    def part(self, source: Source, number: int) -> list[EpisodeFacts]:
        """Return the facts of all episodes of one file, which is read now if it was not before; [] if there is none."""
        for entry in self._refresh(source):
            if entry.part.number == number:
                self._load(entry)
                return entry.facts
        return []

    def read(self, source: Source, chosen: Sequence[EpisodeFacts]) -> list[PlayedEpisode]:
        """Read episodes of one file in full.

        Raises:
            GagpoError: the file cannot be used any more.
            OSError: it was removed.
        """
        if not chosen:
            return []
        entry = next((entry for entry in self._refresh(source) if entry.part.number == chosen[0].part), None)
        if entry is None:
            raise RunFolderError(f"The file of part {chosen[0].part} of {source.title} was removed; look again.")
        keys = [(entry.part.path, entry.stamp[1], facts.number) for facts in chosen]
        with self._lock:
            missing = [facts for key, facts in zip(keys, chosen, strict=True) if key not in self._read]
        new = dict(zip((facts.number for facts in missing), entry.file.read(missing), strict=True))
        with self._lock:
            found = [new.get(facts.number) or self._read[key] for key, facts in zip(keys, chosen, strict=True)]
            for key, played in zip(keys, found, strict=True):
                self._read[key] = played
                self._read.move_to_end(key)
            while len(self._read) > max(_KEPT_EPISODES, len(chosen)):
                self._read.popitem(last=False)
        return found

    def stamp(self, key: str = "") -> str:
        """Return a short text that changes when a source, or any of all for "", has something new to show.

        It costs a few calls of ``stat``.
        """
        marks = []
        for source in self.sources():
            if key in ("", source.key):
                entries = self._refresh(source)
                files = [(entry.part.number, entry.stamp, entry.ready) for entry in entries]
                marks.append((source.key, files, logged_stamp(source)))
        return hashlib.sha256(repr(marks).encode()).hexdigest()[:16]

    def _refresh(self, source: Source) -> list[_Entry]:
        entries = []
        for part in source.parts():
            try:
                found = part.path.stat()
                stamp = (found.st_size, found.st_mtime_ns)
                with self._lock:
                    entry = self._entries.get(part.path)
                    # What is not read yet is read as it is then, however often it changes before.
                    if entry is None or (entry.ready and entry.stamp != stamp):
                        known = () if entry is None else entry.facts
                        entry = self._entries[part.path] = _Entry(part, part.open(known), stamp)
            except OSError:
                # Removed between two looks: a run that resumes plays its last iterations again.
                continue
            entries.append(entry)
        return entries

    def _load(self, entry: _Entry, most: int | None = None) -> None:
        """Read the facts of a file, unless there is no index and a scan would read more than ``most`` bytes."""
        if entry.ready:
            return
        rows = _read_index(entry)
        if rows is None:
            try:
                if most is not None and entry.file.unread > most:
                    return
                rows = entry.file.scan()
            except (GagpoError, OSError) as error:
                entry.problem = str(error)
                rows = []
            else:
                if entry.file.kept:
                    _write_index(entry, rows)
        entry.facts = [facts.of_part(entry.part.number) for facts in rows]
        entry.ready = True

    def _work_behind(self) -> None:
        with self._lock:
            if self._worker is None or not self._worker.is_alive():
                self._worker = threading.Thread(target=self._work, name="index", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                entry = next((entry for entry in self._entries.values() if not entry.ready), None)
            if entry is None:
                return
            self._load(entry)


def _index_path(records: Path) -> Path:
    return records.parent / ".index" / f"{records.name}.json"


def _read_index(entry: _Entry) -> list[EpisodeFacts] | None:
    try:
        kept = json.loads(_index_path(entry.part.path).read_text(encoding="utf-8"))
        if (kept["version"], tuple(kept["stamp"])) != (_VERSION, entry.stamp):
            return None
        return [EpisodeFacts(*row) for row in kept["episodes"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_index(entry: _Entry, facts: Sequence[EpisodeFacts]) -> None:
    target = _index_path(entry.part.path)
    kept = {"version": _VERSION, "stamp": entry.stamp, "episodes": [item.row() for item in facts]}
    partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.partial")
    with suppress(OSError):
        target.parent.mkdir(exist_ok=True)
        partial.write_text(json.dumps(kept, separators=(",", ":")), encoding="utf-8")
        partial.replace(target)
