"""From episodes to the rows of an update: which advantage each row carries, and which rows stay out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import loop_settings
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.loop import Trainer
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow
from support import tiny_vault
from support.report_runs import episode

# Score and number of steps of each episode, group after group. No two episodes are alike, and the scores of the two
# groups are spaced differently, so that an advantage at another episode's place cannot go unseen.
_GROUPS = (((0.0, 3), (1.0, 1), (2.5, 4), (7.0, 2)), ((4.0, 1), (3.0, 5), (0.5, 2), (-2.0, 3)))


class Recorder:
    """A backend that plays made-up episodes and keeps the rows it is to train on."""

    def __init__(self, outcomes: Sequence[Episode]) -> None:
        self.outcomes = outcomes
        self.rows: list[TrainingRow] = []

    def rollout(
        self, requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
    ) -> list[Episode]:
        episodes = []
        for request, played in zip(requests, self.outcomes, strict=True):
            episodes.append(replace(played, task=request.task, group=request.group, trajectory=request.trajectory))
            on_done(episodes[-1])
        return episodes

    def compute(self, rows: Sequence[TokenRow], columns: Collection[str]) -> dict[str, NDArray[np.float64]]:
        return {}

    def update(self, rows: Sequence[TrainingRow], seed: int, *, policy: bool = True) -> dict[str, float]:
        self.rows += rows
        return {"policy/rows_trained": float(len(rows))}

    def sync(self) -> None: ...

    def env_stats(self) -> dict[str, float]:
        return {}

    def track(self, iteration: int, metrics: Mapping[str, float], *, evaluation: bool) -> None: ...


class Silent:
    """An observer that looks away."""

    def phase(self, *_: object) -> None: ...

    episode = iteration = evaluation = phase


def _played(score: float, steps: int) -> Episode:
    """An episode whose last step pays ``score``; its steps have states, prompts and responses of their own."""
    made = episode(0, success=False, steps=steps)
    made.steps = [
        replace(
            step,
            state_key=f"{score} {step.index}",
            next_state_key=f"{score} {step.index + 1}",
            reward=score if step.index == steps - 1 else 0.0,
            format_valid=True,
            admissible=True,
            prompt_ids=[1, steps, step.index + 1],
            response_ids=[2, step.index + 1],
        )
        for step in made.steps
    ]
    return made


def _iterate(tmp_path: Path, outcomes: Sequence[Episode], **changes: object) -> tuple[Recorder, dict[str, float]]:
    config: Any = resolve(tiny_vault.arguments("model", tmp_path / "run", **changes)[1:])
    backend = Recorder(outcomes)
    run = RunFolder.create(tmp_path / "run", {}, "")
    trainer = Trainer(loop_settings(config, ["a", "b", "c"], []), backend, run, Silent())
    return backend, trainer.iterate(1)


def test_each_row_carries_the_advantage_of_its_own_episode(tmp_path: Path) -> None:
    """With this estimator a row's advantage grows in a straight line with its episode's lead over the group."""
    outcomes = [_played(score, steps) for group in _GROUPS for score, steps in group]
    backend, _ = _iterate(tmp_path, outcomes, algo__advantage__estimator="reinforce_baseline")
    leads = [score - np.mean([other for other, _ in group]) for group in _GROUPS for score, _ in group]
    expected = {
        (f"i1g{number // 4}t{number % 4}", step.index): (lead, step)
        for number, (lead, played) in enumerate(zip(leads, outcomes, strict=True))
        for step in played.steps
    }
    assert [(row.trajectory, row.step) for row in backend.rows] == list(expected)
    for row in backend.rows:
        _, step = expected[row.trajectory, row.step]
        assert (row.prompt_ids, row.response_ids) == (step.prompt_ids, step.response_ids)
    lead, advantage = np.array([(expected[row.trajectory, row.step][0], row.advantage) for row in backend.rows]).T
    slope, offset = np.polyfit(lead, advantage, 1)
    assert slope > 0.1
    np.testing.assert_allclose(advantage, slope * lead + offset, atol=1e-9)


def test_rows_that_credit_sets_aside_are_not_trained(tmp_path: Path) -> None:
    """The first group is never rewarded, so the estimator is told to leave it out."""
    outcomes = [_played(0.0, steps) for _, steps in _GROUPS[0]] + [_played(*outcome) for outcome in _GROUPS[1]]
    backend, metrics = _iterate(
        tmp_path, outcomes, algo__advantage__estimator="grpo", algo__advantage__drop_reward_free_groups=True
    )
    assert [(row.trajectory, row.step) for row in backend.rows] == [
        (f"i1g1t{member}", step) for member, (_, steps) in enumerate(_GROUPS[1]) for step in range(steps)
    ]
    assert metrics["policy/rows_trained"] == 11
    assert metrics["rollout/steps"] == 21


def test_rows_of_a_transcript_stay_segments_of_one_sequence(tmp_path: Path) -> None:
    outcomes = [_played(score, steps) for group in _GROUPS for score, steps in group]
    for played in outcomes:
        prompt = [1]
        for step in played.steps:
            step.prompt_ids, step.sequence = prompt, 0
            prompt = prompt + step.response_ids + [3]
    backend, metrics = _iterate(tmp_path, outcomes, algo__advantage__estimator="reinforce_baseline")
    assert metrics["rollout/sequences"] == len(outcomes)
    numbers = {row.trajectory: row.sequence for row in backend.rows}
    assert sorted(numbers.values()) == list(range(len(outcomes)))
    assert all(row.sequence == numbers[row.trajectory] for row in backend.rows)
