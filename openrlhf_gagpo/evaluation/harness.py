"""Playing of an evaluation: every task of a plan several times, with a policy or with a backend's engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from openrlhf_gagpo.evaluation.requests import evaluation_requests
from openrlhf_gagpo.evaluation.summary import evaluation_metrics
from openrlhf_gagpo.rollout.player import EpisodePlayer
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, Policy, SamplingParams

__all__ = ["Evaluation", "EvaluationPlan", "Play", "evaluate", "play_with"]


class Play(Protocol):
    """Plays episodes and returns them in request order, as a training backend's ``rollout`` does."""

    def __call__(
        self, requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
    ) -> list[Episode]: ...


@dataclass(frozen=True)
class EvaluationPlan:
    """The tasks of an evaluation, and how they are played."""

    split: str
    tasks: Sequence[str]
    samples: int
    """Episodes of each task."""
    sampling: SamplingParams
    seed: int

    def greedy(self) -> EvaluationPlan:
        """Return the plan that plays every task once at temperature 0."""
        return replace(self, samples=1, sampling=replace(self.sampling, temperature=0.0))


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation."""

    episodes: list[Episode]
    metrics: dict[str, float]
    """``eval/*`` and ``time/eval``, see docs/metrics.md."""


def evaluate(
    play: Play, plan: EvaluationPlan, tag: object = 0, on_done: Callable[[Episode], None] | None = None
) -> Evaluation:
    """Play every task of the plan and summarise the episodes.

    Args:
        tag: distinguishes the evaluations of a run; it is part of group names and sampling seeds.
        on_done: called with every episode as it ends.
    """
    started = time.perf_counter()
    requests = evaluation_requests(plan.tasks, plan.samples, tag, plan.seed)
    episodes = play(requests, plan.sampling, on_done or (lambda episode: None))
    return Evaluation(episodes, evaluation_metrics(episodes) | {"time/eval": time.perf_counter() - started})


@contextmanager
def play_with(policy: Policy, player: EpisodePlayer) -> Iterator[Play]:
    """Yield a ``Play`` for a policy without a training stack, such as a message policy or a script.

    The player's environment workers end with the context.
    """
    with asyncio.Runner() as runner:

        def play(
            requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
        ) -> list[Episode]:
            return runner.run(player.play(requests, policy, sampling, on_done))

        try:
            yield play
        finally:
            runner.run(player.aclose())
