"""The iteration loop (play, table, model columns, credit, update, sync, record), the same for every backend."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit import CreditResult
from openrlhf_gagpo.credit import registry as estimators
from openrlhf_gagpo.credit.gains import GainOptions
from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.evaluation import Evaluation, EvaluationPlan, evaluate, greedy_metrics, plays_greedily
from openrlhf_gagpo.rollout.filtering import keep_informative
from openrlhf_gagpo.rollout.grouping import drop_incomplete
from openrlhf_gagpo.rollout.records import StepKey, write_episodes
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.seeds import stable_seed
from openrlhf_gagpo.training import schedule
from openrlhf_gagpo.training.backend import Backend
from openrlhf_gagpo.training.information_gain import Probes, gain_metrics
from openrlhf_gagpo.training.rows import TrainingRow
from openrlhf_gagpo.training.settings import LoopSettings
from openrlhf_gagpo.training.summary import filter_metrics, memory_metrics, rollout_metrics
from openrlhf_gagpo.training.table import IG, LOG_PROB, VALUE, StepTable

__all__ = ["Observer", "Trainer"]


class Observer(Protocol):
    """An observer of a run, such as a progress display."""

    def phase(self, iteration: int, name: str, episodes: int) -> None:
        """Called when a phase begins; ``episodes`` is the number of episodes that it will play (0 for none)."""

    def episode(self, episode: Episode) -> None:
        """Called when an episode has ended."""

    def iteration(self, iteration: int, metrics: dict[str, float]) -> None:
        """Called when an iteration has ended."""

    def evaluation(self, iteration: int, metrics: dict[str, float]) -> None:
        """Called when an evaluation has ended."""


@dataclass(frozen=True)
class _Rollout:
    """What was played for an iteration."""

    episodes: list[Episode]
    kept: list[Episode]
    metrics: dict[str, float]


class Trainer:
    """One training run on a started backend."""

    def __init__(self, settings: LoopSettings, backend: Backend, run: RunFolder, observer: Observer) -> None:
        self.settings = settings
        self.backend = backend
        self.run = run
        self.observer = observer
        self.estimator = estimators.get(settings.estimator)
        self.loss = settings.objective.build().policy
        # Measured after an iteration's row was written, so it goes into the next row.
        self._carried: dict[str, float] = {}
        self._moved = False
        """Whether the last iteration's update changed the policy."""
        self._ahead: Future[_Rollout] | None = None
        """The next iteration's rollout, if it has been begun."""

    def fit(self, start: int = 0) -> None:
        """Run the iterations after ``start`` (0: all), including evaluations and checkpoints."""
        settings, last = self.settings, self.settings.iterations
        if start == 0 and settings.evaluate_before:
            self._evaluate_once(0)
        for iteration in range(start + 1, last + 1):
            self.iterate(iteration)
            if self._evaluates(iteration):
                self.evaluate(iteration)
            if self._saves(iteration):
                self._save(iteration)
        if settings.evaluate_after:
            self._evaluate_once(last)

    def _evaluates(self, iteration: int) -> bool:
        every = self.settings.evaluate_every
        return every is not None and iteration % every == 0

    def _saves(self, iteration: int) -> bool:
        every = self.settings.save_every
        return every is not None and (iteration % every == 0 or iteration == self.settings.iterations)

    def iterate(self, iteration: int) -> dict[str, float]:
        """Run one iteration (rollout, credit, update, sync), record its metrics and return them.

        In a run that overlaps, the next rollout is played in a thread meanwhile, with the weights of before the update.
        """
        seed = self.settings.seed
        metrics, self._carried = self._carried, {}
        counted = self.backend.env_stats()
        with _timed(metrics, "time/iteration"):
            episodes, kept = self._rollout(iteration, metrics)
            if self._runs_ahead(iteration):
                self._begin_rollout(iteration + 1)
            else:
                self.observer.phase(iteration, "update", 0)
            table = StepTable.from_episodes(kept)
            credited: dict[StepKey, dict[str, float]] = {}
            rows: list[TrainingRow] | None = None
            if len(table):
                result, rows, columns = self._credit(table, kept, metrics)
                credited = table.recorded(result, columns)
                metrics |= {f"credit/{name}": value for name, value in result.diagnostics.items()}
                metrics |= _critic_quality(result)
            self._moved = False
            with self._recording(iteration, episodes, credited):
                if rows is not None:
                    batch_seed = stable_seed(seed, "batches", iteration)
                    metrics |= self.backend.update(rows, batch_seed, policy=iteration > self.settings.critic_warmup)
                    self._moved = metrics.get("policy/optimizer_steps", 0) > 0
                if self._await_rollout(metrics) and rows is not None:
                    with _timed(metrics, "time/sync"):
                        self.backend.sync()
            metrics |= {name: value - counted[name] for name, value in self.backend.env_stats().items()}
        metrics |= memory_metrics()
        self.run.append_metrics(iteration, metrics)
        self.backend.track(iteration, metrics, evaluation=False)
        self.observer.iteration(iteration, metrics)
        return metrics

    def _runs_ahead(self, iteration: int) -> bool:
        """Return whether the next rollout begins before this iteration's update.

        It does not before an evaluation, which needs the engines, nor before a checkpoint, from which a resumed run
        would otherwise go on with fresher weights than this one.
        """
        drained = self._evaluates(iteration) or self._saves(iteration) or iteration == self.settings.iterations
        return self.settings.overlap and not drained

    def _begin_rollout(self, iteration: int) -> None:
        """Begin to play in a thread, which ends with the rollout."""
        settings = self.settings
        # Nobody knows in advance how many tasks a run that filters groups will draw.
        episodes = 0 if settings.group_filter else settings.tasks_per_iteration * settings.group_size
        self.observer.phase(iteration - 1, "update and next rollout", episodes)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._ahead = thread.submit(self._play, iteration, announce=False)
        thread.shutdown(wait=False)

    def _await_rollout(self, metrics: dict[str, float]) -> bool:
        """Wait until no rollout runs; return whether the engines can take weights.

        If the rollout failed, they may be gone. The next iteration, whose rollout it was, raises the cause.
        """
        if self._ahead is None:
            return True
        with _timed(metrics, "time/waiting"):
            wait([self._ahead])
        return self._ahead.exception() is None

    def _rollout(self, iteration: int, metrics: dict[str, float]) -> tuple[list[Episode], list[Episode]]:
        """Take what was played ahead for this iteration or, if nothing was, play it now.

        Returns:
            All episodes, and those of the groups to train on.
        """
        ahead, self._ahead = self._ahead, None
        rollout = self._play(iteration) if ahead is None else ahead.result()
        metrics |= rollout.metrics
        if self.settings.overlap:
            metrics["rollout/staleness"] = float(ahead is not None and self._moved)
            metrics["time/ahead"] = 0.0 if ahead is None else rollout.metrics["time/rollout"]
        return rollout.episodes, rollout.kept

    def _play(self, iteration: int, *, announce: bool = True) -> _Rollout:
        """Play the iteration's episodes, in several draws of tasks if the run filters groups.

        Args:
            announce: whether the observer is told of every draw.
        """
        chosen, wanted = self.settings.group_filter, self.settings.tasks_per_iteration
        metrics: dict[str, float] = {}
        episodes: list[Episode] = []
        kept: list[Episode] = []
        missing, draws = wanted, 0
        while missing and draws < (chosen.max_rounds if chosen else 1):
            episodes += self._draw(iteration, draws, missing, metrics, announce)
            draws += 1
            kept, groups = drop_incomplete(episodes, self.estimator.group_min)
            if chosen:
                kept = keep_informative(kept, chosen)
            missing = wanted - len({episode.group for episode in kept})
        metrics |= rollout_metrics(episodes, groups, self.settings.unknown_token)
        if chosen:
            metrics |= filter_metrics(episodes, kept, draws)
        return _Rollout(episodes, kept, metrics)

    def _draw(self, iteration: int, draw: int, count: int, metrics: dict[str, float], announce: bool) -> list[Episode]:
        """Play a group of each of the ``count`` first tasks of one draw (counted from 0)."""
        settings, seed = self.settings, self.settings.seed
        pool, size = settings.train_tasks, settings.tasks_per_iteration
        if draw:
            tasks = schedule.refill_tasks(pool, size, iteration, draw, seed)[:count]
        else:
            tasks = schedule.iteration_tasks(pool, size, iteration, seed)
        requests = schedule.training_requests(tasks, settings.group_size, iteration, seed, first=draw * size)
        if announce:
            self.observer.phase(iteration, "rollout" if not draw else f"rollout, draw {draw + 1}", len(requests))
        with _timed(metrics, "time/rollout"):
            episodes = self.backend.rollout(requests, settings.sampling, self.observer.episode)
        self._keep_faults(episodes)
        if not draw and not _any_played(episodes):
            with self._recording(iteration, episodes, {}):
                raise self._nothing_played(episodes, f"rollout of iteration {iteration}")
        return episodes

    def evaluate(self, iteration: int) -> dict[str, float] | None:
        """Play every evaluation task and return the metrics, or None if the run has no evaluation split."""
        settings = self.settings
        plan, at_end = settings.evaluation, iteration in (0, settings.iterations)
        if plan is None or not plan.tasks:
            return None
        if not at_end and settings.evaluation_between is not None:
            plan = settings.evaluation_between
        sampled = self._play_evaluation(iteration, plan, "")
        metrics = sampled.metrics | self._evaluate_critic(sampled.episodes)
        if plays_greedily(settings.greedy, at_end):
            greedy = self._play_evaluation(iteration, plan.greedy(), "greedy")
            metrics |= greedy_metrics(greedy.episodes)
            metrics["time/eval"] += greedy.metrics["time/eval"]
        self.run.append_eval(iteration, metrics, split=plan.split)
        self.backend.track(iteration, metrics, evaluation=True)
        self.observer.evaluation(iteration, metrics)
        return metrics

    def _play_evaluation(self, iteration: int, plan: EvaluationPlan, kind: str) -> Evaluation:
        """Play one plan; ``kind`` ("" or "greedy") is part of the episodes' names."""
        self.observer.phase(iteration, f"{kind} evaluation".strip(), len(plan.tasks) * plan.samples)
        result = evaluate(self.backend.rollout, plan, f"{iteration}{kind}", self.observer.episode)
        self._keep_faults(result.episodes)
        if not _any_played(result.episodes):
            raise self._nothing_played(result.episodes, f"evaluation after iteration {iteration}")
        return result

    def _evaluate_critic(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Return how well the critic predicts the returns of episodes that it was not trained on, if there is one."""
        if VALUE not in self.estimator.needs:
            return {}
        table = StepTable.from_episodes([episode for episode in episodes if not episode.faulted])
        columns = self.backend.compute(table.tokens, self.estimator.needs)
        return _critic_quality(self.estimator(table.batch(columns), self.settings.estimator_options))

    def _evaluate_once(self, iteration: int) -> None:
        """Evaluate, unless the run had done so before it was interrupted."""
        if all(row["iteration"] != iteration for row in self.run.evals()):
            self.evaluate(iteration)

    def _keep_faults(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            if episode.fault:
                self.run.add_fault(episode.fault, episode.error, episode.traceback)

    def _nothing_played(self, episodes: Sequence[Episode], what: str) -> RunError:
        first = episodes[0]
        cause = " ".join(first.error.split()).rstrip(".")
        trace = f"; its traceback is in {self.run.fault_path(first.fault)}" if first.fault else ""
        return RunError(
            f"no episode of the {what} could be played ({len(episodes)} failed, the first with: {cause}{trace}); "
            f"fix the environment {self.settings.environment}, its options, or --data.max_len"
        )

    def _credit(
        self, table: StepTable, episodes: Sequence[Episode], metrics: dict[str, float]
    ) -> tuple[CreditResult, list[TrainingRow], dict[str, NDArray[np.float64]]]:
        """Compute the credit of the table's steps, the rows to train on, and the columns that a model computed."""
        columns: dict[str, NDArray[np.float64]] = {}
        if self.estimator.needs:
            with _timed(metrics, "time/columns"):
                columns = self._columns(table, episodes)
        if IG in columns:
            metrics |= gain_metrics(columns[IG], np.array(table.step))
        with _timed(metrics, "time/credit"):
            result = self.estimator(table.batch(columns), self.settings.estimator_options)
            return result, table.training_rows(result, columns, self.loss), columns

    def _columns(self, table: StepTable, episodes: Sequence[Episode]) -> dict[str, NDArray[np.float64]]:
        """Let the model compute what the estimator needs of the table's steps."""
        of_rows = self.estimator.needs - {IG}
        columns = self.backend.compute(table.tokens, of_rows) if of_rows else {}
        if IG in self.estimator.needs:
            probes = Probes.of(episodes)
            read = self.backend.compute(probes.rows, {LOG_PROB})[LOG_PROB] if probes.rows else np.zeros(0)
            options = self.settings.estimator_options
            columns[IG] = probes.gains(read, options if isinstance(options, GainOptions) else GainOptions())
        return columns

    @contextmanager
    def _recording(
        self, iteration: int, episodes: Sequence[Episode], credited: dict[StepKey, dict[str, float]]
    ) -> Iterator[None]:
        """Write the episodes while the block runs, and raise what stopped that; then they are on disk.

        So an iteration whose row of metrics is there has its record too, whenever the run is killed.
        """
        if not self.settings.record:
            yield
            return
        with ThreadPoolExecutor(max_workers=1) as thread:
            writing = thread.submit(write_episodes, self.run.rollout_path(iteration), episodes, credited)
            yield
            writing.result()

    def _save(self, iteration: int) -> None:
        # The iteration number is enough, because tasks, seeds and schedule follow from it (see ``schedule``).
        with _timed(self._carried, "time/checkpoint"):
            self.backend.save_checkpoint(f"global_step{iteration}", {"iteration": iteration})


def _critic_quality(result: CreditResult) -> dict[str, float]:
    return {f"critic/{name}": value for name, value in result.critic_quality.items()}


def _any_played(episodes: Sequence[Episode]) -> bool:
    return any(not episode.faulted and episode.steps for episode in episodes)


@contextmanager
def _timed(metrics: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        metrics[name] = metrics.get(name, 0.0) + time.perf_counter() - started
