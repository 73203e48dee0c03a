"""Episodes to the numbers of ``metrics.jsonl`` and ``eval.jsonl`` (see docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from openrlhf_gagpo.rollout.grouping import GroupReport
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.stats import success_by_category, wilson_interval

__all__ = ["evaluation_metrics", "rollout_metrics"]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def rollout_metrics(episodes: Sequence[Episode], groups: GroupReport) -> dict[str, float]:
    """Metrics of the episodes an iteration played; means leave faulted episodes out."""
    sound = [episode for episode in episodes if not episode.faulted]
    steps = [step for episode in sound for step in episode.steps]
    return {
        "rollout/success": _mean(episode.success for episode in sound),
        "rollout/return": _mean(episode.episode_return for episode in sound),
        "rollout/score": _mean(episode.score for episode in sound),
        "rollout/episode_length": _mean(len(episode.steps) for episode in sound),
        "rollout/episodes": len(episodes),
        "rollout/steps": sum(len(episode.steps) for episode in episodes),
        "rollout/faulted_episodes": groups.faulted_episodes,
        "rollout/skipped_groups": groups.skipped_groups,
        "rollout/truncated_share": _mean(episode.end_reason == "truncated" for episode in sound),
        "rollout/format_invalid_share": _mean(not step.format_valid for step in steps),
        "rollout/inadmissible_share": _mean(not step.admissible for step in steps),
        "rollout/prompt_tokens": _mean(len(step.prompt_ids) for step in steps),
        "rollout/response_tokens": _mean(len(step.response_ids) for step in steps),
        "rollout/prompts_cut": sum(step.history_dropped > 0 for step in steps),
        "rollout/prompts_too_long": sum(episode.end_reason == "prompt_too_long" for episode in sound),
        "rollout/length_capped_share": _mean(step.finish_reason == "length" for step in steps),
        "time/generation_s": sum(episode.generation_s for episode in episodes),
        "time/environment_s": sum(episode.environment_s for episode in episodes),
    }


def evaluation_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Success with its 95 % interval, overall and per category; faulted episodes are counted and left out."""
    sound = [episode for episode in episodes if not episode.faulted]
    # Episodes of one task are not independent: the interval is that of one (mean) outcome per task.
    tasks = len({episode.task for episode in sound})
    share = _mean(episode.success for episode in sound) if sound else 0.0
    low, high = wilson_interval(round(share * tasks), tasks)
    metrics = {
        "eval/success": _mean(episode.success for episode in sound),
        "eval/success_low": low,
        "eval/success_high": high,
        "eval/return": _mean(episode.episode_return for episode in sound),
        "eval/score": _mean(episode.score for episode in sound),
        "eval/episode_length": _mean(len(episode.steps) for episode in sound),
        "eval/tasks": tasks,
        "eval/episodes": len(sound),
        "eval/faulted": len(episodes) - len(sound),
    }
    for entry in success_by_category(episodes):
        if entry.category:
            low, high = entry.interval
            metrics[f"eval/success/{entry.category}"] = entry.share
            metrics[f"eval/success_low/{entry.category}"] = low
            metrics[f"eval/success_high/{entry.category}"] = high
            metrics[f"eval/tasks/{entry.category}"] = entry.episodes
    return metrics
