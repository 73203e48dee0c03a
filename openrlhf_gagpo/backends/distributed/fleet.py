"""The rollout engines of a run: they share the groups of an iteration, and one that dies is started again."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray

from openrlhf_gagpo.backends.distributed.dispatch import Assignment, GroupQueue
from openrlhf_gagpo.backends.distributed.engine import EngineSpec
from openrlhf_gagpo.backends.distributed.stacks import Place
from openrlhf_gagpo.backends.distributed.workers import answers
from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.rollout.player import RolloutSettings
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams

__all__ = ["EngineFleet"]

logger = logging.getLogger(__name__)

_ANSWER_S = 60.0
"""Time in which an engine that is not busy starting up answers a call that does nothing."""
_START_S = 900.0
"""Time that an engine gets to start again."""
_STOP_S = 3.0
"""Time that engines get to close environments. One that is still starting up does not answer at all, and is killed."""
_LEAVE_S = 1.0
"""Time in which a rollout in another thread notices that its engines are gone."""
_DEATHS = 5
"""Engines that may die in one rollout; more have a cause that stays."""


class EngineFleet:
    """Engines with their environment workers.

    Args:
        specs: how each engine is started.
        settings: of the run; its concurrency is that of all engines together, its workers are those of a node that has
            some.
        model: folder or name whose tokenizer the engines load.
        stall_s: seconds without a finished group after which an engine counts as hung; 0 for never.
        limit_s: seconds that engines may take to start, and for other calls than rollouts.
    """

    def __init__(
        self,
        specs: Sequence[EngineSpec],
        settings: RolloutSettings,
        model: str,
        *,
        fast_tokenizer: bool,
        stall_s: float,
        limit_s: float,
    ) -> None:
        self.handles = [spec.handle for spec in specs]
        """In a list that stays the same; those of engines that are started again are replaced in it."""
        self._specs = list(specs)
        self._room = -(-settings.concurrency // len(specs))
        self._rollout = [replace(settings, concurrency=self._room)] * len(specs)
        self._tokenizer = (model, fast_tokenizer)
        self._stall_s = stall_s
        self._limit_s = limit_s
        self.places: list[Place] = []
        """Where they are, once they are prepared."""
        self._lost_stats: dict[str, float] = {}
        self._seen_stats: list[dict[str, float]] = [{} for _ in specs]
        self.restarts = 0
        self._playing = threading.Lock()
        """Held while engines play or are started again, which may be in a thread of its own."""
        self._stopped = False
        self.on_restart: Callable[[int], None] | None = None
        """Called with the number of an engine that was started again, to give it the weights; None if none can be."""

    def prepare(self) -> None:
        """Wait for the engines and let them load tokenizers; the engines that use a node share its environment workers.

        These are on the engine's own node, or for all engines on the same other nodes.
        """
        what = "the start of the rollout engines"
        self.places = answers([handle.listen.remote() for handle in self.handles], what, self._limit_s)
        here = Counter(place.node for place in self.places)
        sharing = [
            len(self.handles) if settings.placement == "ray" else here[place.node]
            for settings, place in zip(self._rollout, self.places, strict=True)
        ]
        self._rollout = [
            replace(settings, workers=-(-settings.workers // engines))
            for settings, engines in zip(self._rollout, sharing, strict=True)
        ]
        answers([self._prepared(number) for number in range(len(self.handles))], what, self._limit_s)

    def _prepared(self, engine: int) -> Any:
        return self.handles[engine].prepare.remote(self._rollout[engine], *self._tokenizer)

    def play(
        self, requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
    ) -> list[Episode]:
        """Play all requests and return the episodes in their order; groups of engines that die are played again.

        Raises:
            RunError: engines die again and again, or cannot be started again in this placement.
            ray.exceptions.RayTaskError: an episode failed for a reason that is not the engine's.
        """
        with self._playing:
            return self._play(requests, sampling, on_done)

    def _play(
        self, requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
    ) -> list[Episode]:
        groups: dict[str, list[EpisodeRequest]] = {}
        for request in requests:
            groups.setdefault(request.group, []).append(request)
        queue = GroupQueue(list(groups.values()), len(self.handles), self._room)
        pending: dict[Any, Assignment] = {}
        progress = [time.monotonic()] * len(self.handles)
        played: dict[tuple[str, str], Episode] = {}
        deaths = 0
        while True:
            self._check_running()
            while (assignment := queue.next()) is not None:
                handle = self.handles[assignment.engine]
                if not any(other.engine == assignment.engine for other in pending.values()):
                    progress[assignment.engine] = time.monotonic()
                pending[handle.play.remote(assignment.members, sampling)] = assignment
            if not pending:
                return [played[request.group, request.trajectory] for request in requests]
            done, _ = ray.wait(list(pending), num_returns=1, timeout=min(_ANSWER_S, self._stall_s or _ANSWER_S))
            self._check_running()
            dead: dict[int, str] = {}
            for ref in done:
                assignment = pending.pop(ref)
                try:
                    episodes = ray.get(ref, timeout=_ANSWER_S)
                except ray.exceptions.RayActorError as error:
                    queue.lost(assignment)
                    dead[assignment.engine] = _cause(error)
                    continue
                queue.done(assignment)
                progress[assignment.engine] = time.monotonic()
                for episode in episodes:
                    played[episode.group, episode.trajectory] = episode
                    on_done(episode)
            dead |= self._stalled(pending, progress)
            for engine, cause in dead.items():
                deaths += 1
                if deaths > _DEATHS:
                    raise RunError(f"engines died {deaths} times in one rollout, at last because {cause}")
                for ref in [ref for ref, other in pending.items() if other.engine == engine]:
                    queue.lost(pending.pop(ref))
                self._restart(engine, cause)
                # Of all, since nobody has read meanwhile what the others finished.
                progress = [time.monotonic()] * len(self.handles)

    def revive(self) -> bool:
        """Start the engines again that died between rollouts; return whether there were any."""
        with self._playing:
            return self._revive()

    def _revive(self) -> bool:
        self._check_running()
        asked = {handle.env_stats.remote(): number for number, handle in enumerate(self.handles)}
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
        self._check_running()
        dead = {asked[ref]: f"it did not answer within {_ANSWER_S:g} s" for ref in silent}
        for ref in answered:
            try:
                ray.get(ref, timeout=_ANSWER_S)
            except ray.exceptions.RayActorError as error:
                dead[asked[ref]] = _cause(error)
        for engine, cause in dead.items():
            self._restart(engine, cause)
        return bool(dead)

    def begin(self, method: str, **named: Any) -> list[Any]:
        """Call a method of every engine and return the references to the answers."""
        return [getattr(handle, method).remote(**named) for handle in self.handles]

    def call(self, method: str, **named: Any) -> None:
        """Call a method of every engine, such as ``sleep``, and wait for the answers."""
        answers(self.begin(method, **named), f"the {method} of the rollout engines", self._limit_s)

    def stats(self) -> dict[str, float]:
        """Return the counters of all environment workers, and of the engines that were started again."""
        for number, ref in enumerate([handle.env_stats.remote() for handle in self.handles]):
            # An engine that died is started again at the next rollout.
            with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                self._seen_stats[number] = ray.get(ref, timeout=_ANSWER_S)
        totals = dict(self._lost_stats)
        for stats in self._seen_stats:
            _add(totals, stats)
        return totals | {"env/engine_restarts": float(self.restarts)}

    def stop(self) -> None:
        """End the engines and all that belongs to them, and so the rollout that another thread may be playing."""
        self._stopped = True
        refs = [handle.shutdown.remote() for handle in self.handles]
        ray.wait(refs, num_returns=len(refs), timeout=_STOP_S)
        for handle in self.handles:
            ray.kill(handle)
        if self._playing.acquire(timeout=_LEAVE_S):
            self._playing.release()

    def _stalled(self, pending: dict[Any, Assignment], progress: Sequence[float]) -> dict[int, str]:
        """Return the engines that have groups and finished none for too long."""
        if not self._stall_s:
            return {}
        waited = {busy.engine: time.monotonic() - progress[busy.engine] for busy in pending.values()}
        limit = f"it finished no group for {self._stall_s:g} s (--rollout.stall_timeout)"
        return {engine: limit for engine, seconds in waited.items() if seconds > self._stall_s}

    def _check_running(self) -> None:
        # Calls after the end of a Ray would start another one.
        if self._stopped:
            raise RunError("the engines were stopped during a rollout")

    def _restart(self, engine: int, cause: str) -> None:
        if self.on_restart is None:
            raise RunError(
                f"rollout engine {engine} failed because {cause}; on GPUs of its own, or with --train.overlap, it is "
                "not started again within a run, so resume the run with --ckpt.load_enable"
            )
        logger.warning("rollout engine %d failed because %s; it is started again", engine, cause)
        self.restarts += 1
        # What its environment workers had counted until they were last asked.
        _add(self._lost_stats, self._seen_stats[engine])
        self._seen_stats[engine] = {}
        ray.kill(self.handles[engine])
        self.handles[engine] = self._specs[engine].start()
        handle = self.handles[engine]
        self.places[engine], _ = ray.get([handle.listen.remote(), self._prepared(engine)], timeout=_START_S)
        self.on_restart(engine)


def _cause(error: ray.exceptions.RayActorError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__


def _add(totals: dict[str, float], stats: dict[str, float]) -> None:
    for name, value in stats.items():
        totals[name] = totals.get(name, 0.0) + value
