"""The samples of an evaluation, seen as episodes, also while the evaluation appends to them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from openrlhf_gagpo.errors import EvaluationError
from openrlhf_gagpo.evaluation.store import EvaluationFolder
from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.viewer.facts import EpisodeFacts

__all__ = ["SampleFile"]


class SampleFile:
    """``episodes.jsonl`` of an evaluation. Every trial of an agent is an episode; none has credit."""

    kept = True
    grows = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = EvaluationFolder(path.parent)
        self._lock = threading.Lock()
        self._found: dict[str, list[EpisodeFacts]] = {}
        self._count = 0
        self._end = 0

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of change."""
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def scan(self) -> list[EpisodeFacts]:
        """Read the facts of all trials, of a sample that was played again only the last ones.

        A second call reads only the lines that were appended since the first.

        Raises:
            EvaluationError: a line is not a sample.
            OSError: the file cannot be read.
        """
        with self._lock:
            if not self._only_grew():
                self._found, self._count, self._end = {}, 0, 0
            for line in self._folder.sample_lines(self._end):
                # Out of the dictionary first, so that it stands in the order of the file.
                self._found.pop(line.sample.identity, None)
                self._found[line.sample.identity] = [
                    EpisodeFacts.of(trial, self._count + number, line.offset, line.size)
                    for number, trial in enumerate(line.sample.trials)
                ]
                self._count += len(line.sample.trials)
                self._end = line.offset + line.size
            return [facts for trials in self._found.values() for facts in trials]

    def read(self, chosen: Sequence[EpisodeFacts]) -> list[PlayedEpisode]:
        """Read the chosen trials in full, with the errors of ``scan``."""
        lines = {facts.offset: self._trials(facts.offset) for facts in chosen}
        found = []
        for facts in chosen:
            trial = next((item for item in lines[facts.offset] if item.trajectory == facts.trajectory), None)
            if trial is None:
                raise EvaluationError(f"{self.path} was rewritten while it was read; look again")
            found.append(PlayedEpisode(facts.number, trial, [{} for _ in trial.steps]))
        return found

    def _trials(self, offset: int) -> list[Episode]:
        return next((line.sample.trials for line in self._folder.sample_lines(offset)), [])

    def _only_grew(self) -> bool:
        """Whether what was read is still there, as far as can be told without reading it."""
        with self.path.open("rb") as file:
            file.seek(max(0, self._end - 1))
            return self._end == 0 or file.read(1) == b"\n"
