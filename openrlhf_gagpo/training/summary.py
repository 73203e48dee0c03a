"""The numbers of ``metrics.jsonl`` that come from training episodes (see docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_gagpo.rollout.grouping import GroupReport
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.stats import mean

__all__ = ["filter_metrics", "rollout_metrics"]


def rollout_metrics(episodes: Sequence[Episode], groups: GroupReport) -> dict[str, float]:
    """Compute the metrics of an iteration's episodes; means leave out faulted episodes."""
    sound = [episode for episode in episodes if not episode.faulted]
    steps = [step for episode in sound for step in episode.steps]
    return {
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
        "rollout/prompt_tokens": mean(len(step.prompt_ids) for step in steps),
        "rollout/response_tokens": mean(len(step.response_ids) for step in steps),
        "rollout/prompts_cut": sum(step.history_dropped > 0 for step in steps),
        "rollout/prompts_too_long": sum(episode.end_reason == "prompt_too_long" for episode in sound),
        "rollout/length_capped_share": mean(step.finish_reason == "length" for step in steps),
        "time/generation_s": sum(episode.generation_s for episode in episodes),
        "time/environment_s": sum(episode.environment_s for episode in episodes),
    }


def filter_metrics(episodes: Sequence[Episode], kept: Sequence[Episode], draws: int) -> dict[str, float]:
    """Count the groups that an iteration drew and those that it kept, in a run that filters groups."""
    return {
        "rollout/groups_drawn": len({episode.group for episode in episodes}),
        "rollout/groups_kept": len({episode.group for episode in kept}),
        "rollout/draws": draws,
    }
