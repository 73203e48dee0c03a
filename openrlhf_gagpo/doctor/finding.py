"""The result of one check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum

__all__ = ["Finding", "Level", "worst"]


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    WARNING = 1
    """A run starts, but may be slower, differ from what was tested, or lack something that it may not need."""
    PROBLEM = 2
    """A run cannot start or will fail."""

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it."""

    level: Level
    subject: str
    """What was checked, in a word or two."""
    text: str
    advice: str = ""
    """What to do; "" if there is nothing to do."""

    def to_dict(self) -> dict[str, str]:
        """Return the fields in JSON types."""
        return asdict(self) | {"level": str(self.level)}


def worst(findings: Iterable[Finding]) -> Level:
    """Return the worst level among the findings; ``OK`` without any."""
    return max((finding.level for finding in findings), default=Level.OK)
