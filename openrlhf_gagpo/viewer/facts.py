"""What lists and filters need to know of an episode, without its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.rollout.types import Episode

__all__ = ["OUTCOMES", "EpisodeFacts", "EpisodeFile", "outcome"]

OUTCOMES = ("solved", "failed", "step limit", "prompt too long", "fault")
_ENDS = {"terminated": "failed", "truncated": "step limit", "prompt_too_long": "prompt too long"}


def outcome(success: bool, end_reason: str) -> str:
    """Return one of ``OUTCOMES``: failures of anything but the agent are faults."""
    return "solved" if success else _ENDS.get(end_reason, "fault")


@dataclass(frozen=True, slots=True)
class EpisodeFacts:
    """One episode of a file."""

    number: int
    """0-based position in its file."""
    task: str
    category: str
    group: str
    trajectory: str
    outcome: str
    score: float
    episode_return: float
    steps: int
    malformed: int
    """Steps with a malformed response."""
    inadmissible: int
    """Steps whose action the environment did not recognise."""
    error: str
    offset: int
    """Of its first byte in the decompressed file."""
    size: int
    """In bytes."""
    part: int = 0
    """Number of its file among those of the source: the iteration, in a run."""

    @classmethod
    def of(cls, episode: Episode, number: int, offset: int = 0, size: int = 0) -> EpisodeFacts:
        """Take the facts out of an episode."""
        return cls(
            number=number,
            task=episode.task,
            category=episode.category,
            group=episode.group,
            trajectory=episode.trajectory,
            outcome=outcome(episode.success, episode.end_reason),
            score=float(episode.score),
            episode_return=float(episode.episode_return),
            steps=len(episode.steps),
            malformed=sum(not step.format_valid for step in episode.steps),
            inadmissible=sum(not step.admissible for step in episode.steps),
            error=episode.error,
            offset=offset,
            size=size,
        )

    def row(self) -> list[Any]:
        """Return all fields except ``part``, as they are kept on disk."""
        return [getattr(self, name) for name in _KEPT]

    def of_part(self, part: int) -> EpisodeFacts:
        """Return the same facts in another part."""
        return replace(self, part=part)


_KEPT = tuple(field.name for field in fields(EpisodeFacts))[:-1]


class EpisodeFile(Protocol):
    """A file with episodes, in whichever format; another format is one more class with these four."""

    @property
    def kept(self) -> bool:
        """Whether facts of it are worth keeping on disk."""
        ...

    @property
    def unread(self) -> int:
        """Bytes that a scan has to read. Raises ``OSError``."""
        ...

    def scan(self) -> list[EpisodeFacts]:
        """Read the facts of all episodes. Raises ``GagpoError`` or ``OSError`` for a file that cannot be used."""
        ...

    def read(self, chosen: Sequence[EpisodeFacts]) -> list[PlayedEpisode]:
        """Read the chosen episodes in full, with the same errors."""
        ...
