"""One evaluation from its checked settings to its result, continued where a former process stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from openrlhf_gagpo.evaluation.harness import EvaluationPlan
from openrlhf_gagpo.evaluation.prices import Price
from openrlhf_gagpo.evaluation.requests import evaluation_requests
from openrlhf_gagpo.evaluation.result import numbers
from openrlhf_gagpo.evaluation.rows import table
from openrlhf_gagpo.evaluation.samples import Kit, Sample, Source, play_samples
from openrlhf_gagpo.evaluation.store import EvaluationFolder
from openrlhf_gagpo.rollout.types import EpisodeRequest

__all__ = ["Session", "StartedSource"]


class StartedSource(Source, Protocol):
    """A policy that has to be started and released."""

    async def start(self, episodes: int, concurrency: int) -> None:
        """Get ready for so many episodes, at most ``concurrency`` at a time."""
        ...

    async def aclose(self) -> None:
        """Release everything."""
        ...


@dataclass(frozen=True)
class Session:
    """What is evaluated, with what, and where it is kept; to be used while the folder is claimed."""

    folder: EvaluationFolder
    plan: EvaluationPlan
    kit: Kit
    source: StartedSource
    label: str
    """The policy in a few words, for tables."""
    price: Price | None = None

    def open_requests(self, *, retry_faulted: bool) -> list[EpisodeRequest]:
        """Return the requests without a finished sample, in the order of the plan.

        Args:
            retry_faulted: whether samples that a failure of environment or policy ended are played again.
        """
        done = self.folder.samples()
        return [
            request
            for request in self._requests()
            if request.trajectory not in done or (retry_faulted and done[request.trajectory].episode.faulted)
        ]

    def play(self, requests: Sequence[EpisodeRequest], on_done: Callable[[Sample], None]) -> None:
        """Play ``requests``, and write every sample to the folder as it ends. Nothing is loaded for no request."""
        if requests:
            with asyncio.Runner() as runner:
                runner.run(self._play(requests, on_done))

    def conclude(self) -> dict[str, Any]:
        """Compute the result from all finished samples, write it to the folder, and return it."""
        samples = self.folder.samples()
        ordered = [samples[request.trajectory] for request in self._requests() if request.trajectory in samples]
        protocol = self.folder.protocol()
        result = {
            "label": self.label,
            "numbers": numbers(ordered, self.price),
            "settings": protocol["settings"],
            "sessions": protocol["sessions"],
        }
        self.folder.write_result(result, table([result]))
        return result

    def _requests(self) -> list[EpisodeRequest]:
        return evaluation_requests(self.plan.tasks, self.plan.samples, "", self.plan.seed)

    async def _play(self, requests: Sequence[EpisodeRequest], on_done: Callable[[Sample], None]) -> None:
        def keep(sample: Sample) -> None:
            self.folder.append(sample)
            on_done(sample)

        try:
            await self.source.start(len(requests), self.kit.settings.concurrency)
            await play_samples(requests, self.kit, keep)
        finally:
            await self.source.aclose()
