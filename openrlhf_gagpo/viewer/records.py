"""Files of recorded episodes, read one episode at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from openrlhf_gagpo.errors import EpisodeFileError
from openrlhf_gagpo.report.episodes import PlayedEpisode, without_placeholders
from openrlhf_gagpo.rollout.types import Episode, Step
from openrlhf_gagpo.viewer.facts import EpisodeFacts
from openrlhf_gagpo.viewer.seekable import SeekableGzip

__all__ = ["RecordFile"]

_HEADER = 4096
"""Bytes that hold the header for certain."""
_STEP_FIELDS = {field.name for field in fields(Step)}
_EPISODE_FIELDS = {field.name for field in fields(Episode)} - {"steps"}
_MISSING: Mapping[str, Any] = {
    "state_key": "",
    "next_state_key": "",
    "observation": "",
    "action": "",
    "reward": 0.0,
    "terminated": False,
    "truncated": False,
    "format_valid": True,
    "admissible": True,
    "prompt_ids": [],
    "response_ids": [],
    "sampling_log_probs": [],
    "response": "",
}
"""Stands for step fields that a record lacks, so that other programs' records open too."""


class RecordFile:
    """A file as ``rollout.records`` writes it. Fields that this release does not know are passed over."""

    kept = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = SeekableGzip(path)

    @property
    def unread(self) -> int:
        """Bytes that a scan has to read: all."""
        return self.path.stat().st_size

    def scan(self) -> list[EpisodeFacts]:
        """Read the facts of all episodes in one pass.

        Raises:
            EpisodeFileError: the file is cut short or holds something else.
            OSError: the file cannot be read.
        """
        facts: list[EpisodeFacts] = []
        for start, size, records in self._episodes():
            facts.append(EpisodeFacts.of(self._played(records, len(facts)).episode, len(facts), start, size))
        return facts

    def read(self, chosen: Sequence[EpisodeFacts]) -> list[PlayedEpisode]:
        """Read the chosen episodes in full, with the errors of ``scan``."""
        texts = self._text.read([(facts.offset, facts.size) for facts in chosen])
        found = [
            self._played([self._record(line) for line in text.split(b"\n") if line], facts.number)
            for facts, text in zip(chosen, texts, strict=True)
        ]
        if not self._first_version:
            return found
        credit = without_placeholders([played.credit for played in found])
        return [replace(played, credit=rows) for played, rows in zip(found, credit, strict=True)]

    @cached_property
    def _first_version(self) -> bool:
        """Whether the release that wrote the file recorded 0 for what an estimator lacks."""
        (head,) = self._text.read([(0, _HEADER)])
        return self._record(head.partition(b"\n")[0]).get("version") == 1

    def _episodes(self) -> Iterator[tuple[int, int, list[dict[str, Any]]]]:
        """Yield offset, size and records of each episode."""
        start, end = 0, 0
        records: list[dict[str, Any]] = []
        for offset, line in self._text.lines():
            record = self._record(line)
            if record.get("kind") != "step" and records:
                yield start, end - start, records
                records = []
            if record.get("kind") == "episode":
                start = offset
            elif record.get("kind") != "step" and "format" not in record:
                raise self._strange()
            if "format" not in record:
                records.append(record)
            end = offset + len(line) + 1
        if records:
            yield start, end - start, records

    def _record(self, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise self._strange()
        return record

    def _played(self, records: Iterable[dict[str, Any]], number: int) -> PlayedEpisode:
        head, *rest = records
        try:
            steps = [Step(**{**_MISSING, **_known(record, _STEP_FIELDS)}) for record in rest]
            episode = Episode(steps=steps, **_known(head, _EPISODE_FIELDS))
        except TypeError as error:
            raise self._strange() from error
        return PlayedEpisode(number, episode, [record.get("credit") or {} for record in rest])

    def _strange(self) -> EpisodeFileError:
        return EpisodeFileError(f"{self.path} is not a file of played episodes; give one that a run recorded")


def _known(record: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name in names}
