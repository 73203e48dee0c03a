"""Recorded episodes with the credit of their steps, for the report and for ``gagpo show``."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.errors import RunFolderError
from openrlhf_gagpo.rollout.records import read_records
from openrlhf_gagpo.rollout.types import Episode, Step
from openrlhf_gagpo.runfolder import RunFolder

__all__ = ["PlayedEpisode", "best", "extremes", "load_episodes", "without_placeholders", "worst"]

_MAY_BE_ABSENT = ("td_residual",)


@dataclass(frozen=True)
class PlayedEpisode:
    """One episode as recorded."""

    number: int
    """0-based position in the file of its iteration."""
    episode: Episode
    credit: list[dict[str, float]]
    """Credit values of each step by name ("advantage", ...); empty for steps recorded without."""

    @property
    def rows(self) -> list[tuple[Step, float | None]]:
        """The steps, each with its advantage."""
        return [(s, credit.get("advantage")) for s, credit in zip(self.episode.steps, self.credit, strict=True)]

    @property
    def final_observation(self) -> str:
        """The environment's answer to the last action, if it was recorded."""
        return str(self.episode.extra.get("final_observation", ""))

    @property
    def outcome(self) -> str:
        """The way it ended, in words."""
        if self.episode.faulted:
            what = "environment failure" if self.episode.end_reason == "env_fault" else "no answer of the policy"
            return f"{what}: {self.episode.error}" if self.episode.error else what
        if self.episode.success:
            return "solved"
        endings = {"terminated": "failed", "truncated": "step limit", "prompt_too_long": "prompt too long"}
        return endings[self.episode.end_reason]


def load_episodes(run: RunFolder, iteration: int) -> list[PlayedEpisode]:
    """Return the episodes of one iteration in file order. Raises ``RunFolderError`` if missing or unreadable."""
    path = run.rollout_path(iteration)
    if not path.is_file():
        recorded = run.rollout_iterations()
        if not recorded:
            raise RunFolderError(f"{run.path} has no recorded episodes (the run was made with recording off).")
        raise RunFolderError(
            f"Iteration {iteration} has no recorded episodes; recorded are iterations {_ranges(recorded)}."
        )
    try:
        episodes, credit = read_records(path)
    except (OSError, ValueError) as error:
        raise RunFolderError(str(error)) from error
    rows = [[credit.get((e.group, e.trajectory, step.index), {}) for step in e.steps] for e in episodes]
    return [
        PlayedEpisode(i, e, row) for i, (e, row) in enumerate(zip(episodes, without_placeholders(rows), strict=True))
    ]


def without_placeholders(episodes: list[list[dict[str, float]]]) -> list[list[dict[str, float]]]:
    """Return credit without the quantities that an older release recorded as 0 for estimators that have none.

    Such a quantity is exactly 0 in every step.

    Args:
        episodes: the credit of each step of each episode of one file.
    """
    steps = [step for episode in episodes for step in episode]
    absent = {name for name in _MAY_BE_ABSENT if not any(step.get(name) for step in steps)}
    return [[{n: v for n, v in step.items() if n not in absent} for step in episode] for episode in episodes]


def best(played: list[PlayedEpisode]) -> PlayedEpisode:
    """Return the first of the best episodes by success, then return; a faulted one only if there is no other."""
    return max(played, key=lambda p: (not p.episode.faulted, p.episode.success, p.episode.episode_return))


def worst(played: list[PlayedEpisode]) -> PlayedEpisode:
    """Return the first of the worst episodes by success, then return; a faulted one only if there is no other."""
    return min(played, key=lambda p: (p.episode.faulted, p.episode.success, p.episode.episode_return))


def extremes(played: list[PlayedEpisode]) -> list[tuple[str, PlayedEpisode]]:
    """Return the best and the worst episode with their labels; only one if all did equally well."""
    if not played:
        return []
    top, bottom = best(played), worst(played)
    if top.episode.episode_return == bottom.episode.episode_return and top.episode.success == bottom.episode.success:
        return [("first episode", top)]
    return [("best (success, then return)", top), ("worst (success, then return)", bottom)]


def _ranges(numbers: list[int]) -> str:
    """Abbreviate ascending whole numbers: "1 to 4, 7"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)
