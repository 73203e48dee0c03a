"""Selection of the episodes that get credit: those of groups that still have enough episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from openrlhf_gagpo.rollout.types import Episode

__all__ = ["GroupReport", "drop_incomplete"]


@dataclass(frozen=True)
class GroupReport:
    """Counts of what ``drop_incomplete`` got and left out. ``episodes`` is the sum of the four episode counts."""

    groups: int
    """Groups among the episodes given."""
    episodes: int
    kept_episodes: int
    faulted_episodes: int
    """Left out because the environment failed, which says nothing about the policy."""
    unplayed_episodes: int
    """Left out because they have no step to learn from: their first prompt did not fit."""
    skipped_groups: int
    """Groups with too few episodes left after the faulted and the unplayed ones were left out."""
    skipped_episodes: int
    """Episodes left out with their group although they were neither faulted nor unplayed."""


def drop_incomplete(episodes: Sequence[Episode], min_group: int = 2) -> tuple[list[Episode], GroupReport]:
    """Leave out faulted episodes and those without steps, then groups with fewer than ``min_group`` left.

    Order is kept.

    Raises:
        ValueError: ``min_group`` is below 1.
    """
    if min_group < 1:
        raise ValueError(f"min_group is {min_group}: use 1 or more")
    sound = [episode for episode in episodes if not episode.faulted]
    played = [episode for episode in sound if episode.steps]
    sizes = Counter(episode.group for episode in played)
    kept = [episode for episode in played if sizes[episode.group] >= min_group]
    groups = {episode.group for episode in episodes}
    report = GroupReport(
        groups=len(groups),
        episodes=len(episodes),
        kept_episodes=len(kept),
        faulted_episodes=len(episodes) - len(sound),
        unplayed_episodes=len(sound) - len(played),
        skipped_groups=sum(sizes[group] < min_group for group in groups),
        skipped_episodes=len(played) - len(kept),
    )
    return kept, report
