"""The numbers of ``metrics.jsonl`` that come from training episodes and from the machine (see docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from openrlhf_gagpo import machine
from openrlhf_gagpo.rollout.filtering import with_spread
from openrlhf_gagpo.rollout.grouping import GroupReport
from openrlhf_gagpo.rollout.types import Episode, Step
from openrlhf_gagpo.stats import mean

__all__ = ["filter_metrics", "memory_metrics", "rollout_metrics"]


def rollout_metrics(
    episodes: Sequence[Episode], groups: GroupReport, unknown_token: int | None = None
) -> dict[str, float]:
    """Compute the metrics of an iteration's episodes; means leave out faulted episodes.

    Args:
        unknown_token: id that the tokenizer gives to what it does not know; None if it has no such id.
    """
    sound = [episode for episode in episodes if not episode.faulted]
    steps = [step for episode in sound for step in episode.steps]
    told = [episode for episode in sound if episode.cached_tokens is not None]
    cached = {"rollout/prefix_cache_share": _cached_share(told)} if told else {}
    unknown = {} if unknown_token is None else {"rollout/unknown_token_share": _containing(steps, unknown_token)}
    return (
        {
            "rollout/success": mean(episode.success for episode in sound),
            "rollout/return": mean(episode.episode_return for episode in sound),
            "rollout/score": mean(episode.score for episode in sound),
            "rollout/episode_length": mean(len(episode.steps) for episode in sound),
            "rollout/episodes": len(episodes),
            "rollout/steps": sum(len(episode.steps) for episode in episodes),
            "rollout/faulted_episodes": groups.faulted_episodes,
            "rollout/skipped_groups": groups.skipped_groups,
            "rollout/truncated_share": mean(episode.end_reason == "truncated" for episode in sound),
            "rollout/format_invalid_share": mean(not step.format_valid for step in steps),
            "rollout/inadmissible_share": mean(not step.admissible for step in steps),
            "rollout/equal_return_group_share": _equal_return_share(sound),
            "rollout/prompt_tokens": mean(len(step.prompt_ids) for step in steps),
            "rollout/response_tokens": mean(len(step.response_ids) for step in steps),
            "rollout/prompts_cut": sum(step.history_dropped > 0 for step in steps),
            "rollout/prompts_too_long": sum(episode.end_reason == "prompt_too_long" for episode in sound),
            "rollout/sequences": sum(len({step.sequence for step in episode.steps}) for episode in episodes),
            "rollout/length_capped_share": mean(step.finish_reason == "length" for step in steps),
            "time/generation_s": sum(episode.generation_s for episode in episodes),
            "time/environment_s": sum(episode.environment_s for episode in episodes),
        }
        | unknown
        | cached
    )


def _cached_share(episodes: Sequence[Episode]) -> float:
    """Return the share of prompt tokens that an engine did not have to read again."""
    tokens = sum(len(step.prompt_ids) for episode in episodes for step in episode.steps)
    return sum(episode.cached_tokens or 0 for episode in episodes) / tokens if tokens else math.nan


def _containing(steps: Sequence[Step], token: int) -> float:
    return mean(token in step.prompt_ids for step in steps)


def _equal_return_share(episodes: Sequence[Episode]) -> float:
    """Return the share of groups of two episodes and more whose returns do not differ."""
    returns: dict[str, list[float]] = {}
    for episode in episodes:
        returns.setdefault(episode.group, []).append(episode.episode_return)
    return mean(not with_spread(values) for values in returns.values() if len(values) > 1)


def filter_metrics(episodes: Sequence[Episode], kept: Sequence[Episode], draws: int) -> dict[str, float]:
    """Count the groups that an iteration drew and those that it kept, in a run that filters groups."""
    return {
        "rollout/groups_drawn": len({episode.group for episode in episodes}),
        "rollout/groups_kept": len({episode.group for episode in kept}),
        "rollout/draws": draws,
    }


def memory_metrics() -> dict[str, float]:
    """Return how much main memory is taken now, and the most that this process has held."""
    here = machine.memory()
    used = {} if here is None else {"machine/memory_used_gib": here.used / machine.GIB}
    return used | {"machine/process_memory_peak_gib": machine.process_memory_peak() / machine.GIB}
