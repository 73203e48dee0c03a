"""Which groups of episodes are worth training on, by the scores of their episodes.

A group whose episodes all score the same gives most estimators nothing to compare. Such groups can be left out and
replaced by groups of other tasks (DAPO's dynamic sampling: Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning
System at Scale", 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.stats import mean

__all__ = ["RULES", "GroupFilter", "keep_informative", "with_spread"]

# Sums of the same rewards in another order differ by less than this share of their size.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class GroupFilter:
    """The groups to keep, and how often tasks are drawn to have enough of them."""

    rule: str
    """Name in ``RULES``."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """For the rule ``range``: what the mean score has to lie strictly between."""
    max_rounds: int = 1
    """Draws of an iteration, the first included."""


def _in_range(scores: Sequence[float], bounds: tuple[float, float]) -> bool:
    low, high = bounds
    return low < mean(scores) < high


def with_spread(scores: Sequence[float]) -> bool:
    """Return whether the scores are not all equal, up to rounding."""
    return max(scores) - min(scores) > _ROUNDING * max(map(abs, scores))


def _not_all_equal(scores: Sequence[float], bounds: tuple[float, float]) -> bool:
    return with_spread(scores)


RULES: dict[str, Callable[[Sequence[float], tuple[float, float]], bool]] = {
    "range": _in_range,
    "spread": _not_all_equal,
}
"""Name -> whether a group with these scores is kept. A score is the undiscounted sum of an episode's rewards."""


def keep_informative(episodes: Sequence[Episode], chosen: GroupFilter) -> list[Episode]:
    """Return the episodes of the groups that the rule keeps, in the order given."""
    scores: dict[str, list[float]] = {}
    for episode in episodes:
        scores.setdefault(episode.group, []).append(episode.episode_return)
    kept = {group for group, values in scores.items() if RULES[chosen.rule](values, chosen.bounds)}
    return [episode for episode in episodes if episode.group in kept]
