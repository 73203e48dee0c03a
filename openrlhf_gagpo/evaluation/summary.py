"""The numbers of ``eval.jsonl`` from evaluation episodes (see docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.stats import mean, wilson_interval

__all__ = ["CategorySuccess", "evaluation_metrics", "greedy_metrics", "success_by_category"]

_GREEDY = ("success", "success_low", "success_high", "return", "episode_length", "tasks", "faulted")
"""Metrics of an evaluation that are logged of greedy episodes too."""


@dataclass(frozen=True)
class CategorySuccess:
    """Success on the tasks of one category ("" where the environment has only one)."""

    category: str
    successes: int
    episodes: int
    tasks: int

    @property
    def share(self) -> float:
        """Success rate in [0, 1]."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the success rate, with one (mean) outcome per task."""
        return wilson_interval(round(self.share * self.tasks), self.tasks)


def success_by_category(episodes: Iterable[Episode]) -> list[CategorySuccess]:
    """Return the success per category, by name; faulted episodes do not count."""
    by_category: dict[str, list[Episode]] = {}
    for episode in episodes:
        if not episode.faulted:
            by_category.setdefault(episode.category, []).append(episode)
    return [
        CategorySuccess(
            name, sum(episode.success for episode in played), len(played), len({episode.task for episode in played})
        )
        for name, played in sorted(by_category.items())
    ]


def evaluation_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Compute success with its 95 % interval, overall and per category; faulted episodes are counted and left out."""
    sound = [episode for episode in episodes if not episode.faulted]
    # Episodes of one task are not independent, so the interval is that of one (mean) outcome per task.
    tasks = len({episode.task for episode in sound})
    share = mean(episode.success for episode in sound) if sound else 0.0
    low, high = wilson_interval(round(share * tasks), tasks)
    metrics = {
        "eval/success": mean(episode.success for episode in sound),
        "eval/success_low": low,
        "eval/success_high": high,
        "eval/return": mean(episode.episode_return for episode in sound),
        "eval/score": mean(episode.score for episode in sound),
        "eval/episode_length": mean(len(episode.steps) for episode in sound),
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
            metrics[f"eval/tasks/{entry.category}"] = entry.tasks
    return metrics


def greedy_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Compute the main metrics of greedy episodes, under names of their own beside those of sampled ones."""
    metrics = evaluation_metrics(episodes)
    categories = [f"success/{entry.category}" for entry in success_by_category(episodes) if entry.category]
    return {f"eval/greedy_{name}": metrics[f"eval/{name}"] for name in (*_GREEDY, *categories)}
