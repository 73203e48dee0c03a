"""Which engine plays which rollout group, and when it gets it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from openrlhf_gagpo.rollout.types import EpisodeRequest

__all__ = ["Assignment", "GroupQueue"]


class Assignment(NamedTuple):
    """A group that an engine is to play."""

    engine: int
    members: Sequence[EpisodeRequest]


class GroupQueue:
    """Deals groups out as engines have room, so that one with long episodes holds up no group that waits.

    Members of a group share prompts and so profit from one engine's prefix cache; a group is never divided. An engine
    gets a group more than it plays at a time, which fills the places that its other groups leave one by one.

    Args:
        groups: in the order in which they start.
        engines: number of engines.
        room: episodes that an engine plays at a time.
    """

    def __init__(self, groups: Sequence[Sequence[EpisodeRequest]], engines: int, room: int) -> None:
        self._waiting = deque(groups)
        self._room = room
        self._load = [0] * engines

    def next(self) -> Assignment | None:
        """Return what to send now, to the engine with the fewest episodes; None if nothing waits or all are busy."""
        if not self._waiting:
            return None
        engine = min(range(len(self._load)), key=self._load.__getitem__)
        members = self._waiting[0]
        if self._load[engine] and self._load[engine] >= self._room + len(members):
            return None
        self._waiting.popleft()
        self._load[engine] += len(members)
        return Assignment(engine, members)

    def done(self, assignment: Assignment) -> None:
        """Note that an engine has played a group."""
        self._load[assignment.engine] -= len(assignment.members)

    def lost(self, assignment: Assignment) -> None:
        """Note that an engine will not play a group after all; it is dealt out next."""
        self.done(assignment)
        self._waiting.appendleft(assignment.members)
