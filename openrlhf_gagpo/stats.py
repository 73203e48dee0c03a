"""Success rates with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from openrlhf_gagpo.rollout.types import Episode

__all__ = ["CategorySuccess", "success_by_category", "wilson_interval"]

_Z95 = 1.959963984540054
"""97.5th percentile of the standard normal distribution."""


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion, in [0, 1] (Wilson 1927, without continuity correction).

    ``n`` 0 says nothing: (0, 1). Raises ``ValueError`` unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n, got {successes} of {n}.")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the exact bounds are 0 and 1; rounding would miss them by a hair.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class CategorySuccess:
    """Success on the tasks of one category ("" where the environment has only one)."""

    category: str
    successes: int
    episodes: int

    @property
    def share(self) -> float:
        """Success rate in [0, 1]."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the success rate."""
        return wilson_interval(self.successes, self.episodes)


def success_by_category(episodes: Iterable[Episode]) -> list[CategorySuccess]:
    """Success per category, by name; faulted episodes do not count."""
    counts: dict[str, list[int]] = {}
    for episode in episodes:
        if not episode.faulted:
            counts.setdefault(episode.category, []).append(episode.success)
    return [CategorySuccess(name, sum(won), len(won)) for name, won in sorted(counts.items())]
