"""The samples of an evaluation, seen as episodes, also while the evaluation appends to them."""

from __future__ import annotations

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

    def __init__(self, path: Path, known: Sequence[EpisodeFacts] = ()) -> None:
        """Open the file.

        Args:
            known: what ``scan`` found before the file grew; only the lines after it are read again.
        """
        self.path = path
        self._folder = EvaluationFolder(path.parent)
        self._known = known if self._grew_from(_end(known)) else ()

    @property
    def unread(self) -> int:
        """Bytes that a scan has to read."""
        return self.path.stat().st_size - _end(self._known)

    def scan(self) -> list[EpisodeFacts]:
        """Read the facts of all trials, of a sample that was played again only the last ones.

        Raises:
            EvaluationError: a line is not a sample.
            OSError: the file cannot be read.
        """
        lines: dict[int, list[EpisodeFacts]] = {}
        for facts in self._known:
            lines.setdefault(facts.offset, []).append(facts)
        found = {trials[0].trajectory: trials for trials in lines.values()}
        count = max((facts.number + 1 for facts in self._known), default=0)
        for line in self._folder.sample_lines(_end(self._known)):
            # Out of the dictionary first, so that it stands in the order of the file.
            found.pop(line.sample.identity, None)
            found[line.sample.identity] = [
                EpisodeFacts.of(trial, count + number, line.offset, line.size)
                for number, trial in enumerate(line.sample.trials)
            ]
            count += len(line.sample.trials)
        return [facts for trials in found.values() for facts in trials]

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

    def _grew_from(self, end: int) -> bool:
        """Whether a line still ends at byte ``end``; a file that was rewritten hardly has one there."""
        if end == 0:
            return True
        with self.path.open("rb") as file:
            file.seek(end - 1)
            return file.read(1) == b"\n"


def _end(known: Sequence[EpisodeFacts]) -> int:
    return max((facts.offset + facts.size for facts in known), default=0)
