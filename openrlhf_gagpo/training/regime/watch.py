"""The observer that applies the rules while a run trains."""

from __future__ import annotations

from collections.abc import Callable

from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.loop import Observer
from openrlhf_gagpo.training.regime.history import Facts, History
from openrlhf_gagpo.training.regime.rules import advise

__all__ = ["Watch"]


class Watch:
    """A ``training.loop.Observer`` that passes everything on, and writes and says each kind of advice once.

    Args:
        observer: gets all calls first.
        run: its metrics are read, and the advice is written there.
        facts: what the metrics mean in this run.
        say: gets one sentence for each new kind.
    """

    def __init__(self, observer: Observer, run: RunFolder, facts: Facts, say: Callable[[str], None]) -> None:
        self._observer = observer
        self._run = run
        self._facts = facts
        self._say = say

    def phase(self, iteration: int, name: str, episodes: int) -> None:
        self._observer.phase(iteration, name, episodes)

    def episode(self, episode: Episode) -> None:
        self._observer.episode(episode)

    def iteration(self, iteration: int, metrics: dict[str, float]) -> None:
        self._observer.iteration(iteration, metrics)
        self._advise(iteration)

    def evaluation(self, iteration: int, metrics: dict[str, float]) -> None:
        self._observer.evaluation(iteration, metrics)
        self._advise(iteration)

    def _advise(self, iteration: int) -> None:
        # Read from the folder each time, so that a resumed run needs no state of its own.
        said = {row["kind"] for row in self._run.advice()}
        for advice in advise(History.of(self._run.metrics(), self._run.evals()), self._facts):
            if advice.kind not in said:
                self._run.append_advice(iteration, advice.kind, advice.text)
                self._say(f"advice: {advice.text}")
