"""The iteration loop: play, credit, update, sync, record. The same for every backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from openrlhf_gagpo.credit import registry as credit
from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.rollout.grouping import drop_incomplete
from openrlhf_gagpo.rollout.records import write_episodes
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training import schedule
from openrlhf_gagpo.training.backend import Backend
from openrlhf_gagpo.training.rows import rows_from_episodes
from openrlhf_gagpo.training.settings import invalid_weight, sampling
from openrlhf_gagpo.training.summary import evaluation_metrics, rollout_metrics

__all__ = ["Observer", "Trainer"]


class Observer(Protocol):
    """Someone watching a run, such as a progress display."""

    def phase(self, iteration: int, name: str, episodes: int) -> None:
        """A phase begins; ``episodes`` is how many it will play (0: none)."""

    def episode(self, episode: Episode) -> None:
        """An episode ended."""

    def iteration(self, iteration: int, metrics: dict[str, float]) -> None:
        """An iteration ended."""

    def evaluation(self, iteration: int, metrics: dict[str, float]) -> None:
        """An evaluation ended."""


class Trainer:
    """One training run over a started backend."""

    def __init__(
        self,
        config: Any,
        backend: Backend,
        run: RunFolder,
        train_tasks: Sequence[str],
        eval_tasks: Sequence[str],
        observer: Observer,
    ) -> None:
        self.config = config
        self.backend = backend
        self.run = run
        self.train_tasks = train_tasks
        self.eval_tasks = eval_tasks
        self.observer = observer
        self.estimator = credit.get(config.algo.advantage.estimator)
        self.options = config.estimator_options()
        self._seed = config.train.seed
        # Measured after an iteration's row was written: goes into the next one.
        self._carried: dict[str, float] = {}

    def fit(self, start: int = 0) -> None:
        """Run the iterations after ``start`` (0: from the beginning), evaluations and checkpoints included."""
        config, last = self.config, self.config.train.num_iterations
        if start == 0 and config.eval.before_train:
            self._evaluate_once(0)
        for iteration in range(start + 1, last + 1):
            self.iterate(iteration)
            if config.eval.steps > 0 and iteration % config.eval.steps == 0:
                self.evaluate(iteration)
            if config.ckpt.save_steps > 0 and (iteration % config.ckpt.save_steps == 0 or iteration == last):
                self._save(iteration)
        if config.eval.after_train:
            self._evaluate_once(last)

    def iterate(self, iteration: int) -> dict[str, float]:
        """One iteration: rollout, credit, update, sync. Returns and records its metrics."""
        config = self.config
        metrics, self._carried = self._carried, {}
        counted = self.backend.env_stats()
        with _timed(metrics, "time/iteration"):
            tasks = schedule.iteration_tasks(self.train_tasks, config.rollout.batch_size, iteration, self._seed)
            requests = schedule.training_requests(tasks, config.rollout.n_samples_per_prompt, iteration, self._seed)
            with _timed(metrics, "time/rollout"):
                episodes = self._play(requests, iteration, "rollout")
            with _timed(metrics, "time/credit"):
                kept, groups = drop_incomplete(episodes)
                result = self._credit(kept)
            metrics |= rollout_metrics(episodes, groups)
            if config.rollout.record == "all":
                write_episodes(self.run.rollout_path(iteration), episodes, _credit_table(kept, result))
            if result is not None:
                metrics |= {f"credit/{name}": value for name, value in result.diagnostics.items()}
                rows = rows_from_episodes(kept, result.advantage, result.keep)
                self.observer.phase(iteration, "update", 0)
                metrics |= self.backend.update(rows, schedule.stable_seed(self._seed, "batches", iteration))
                with _timed(metrics, "time/sync"):
                    self.backend.sync()
            metrics |= {name: value - counted[name] for name, value in self.backend.env_stats().items()}
        self.run.append_metrics(iteration, metrics)
        self.backend.track(iteration, metrics, evaluation=False)
        self.observer.iteration(iteration, metrics)
        return metrics

    def evaluate(self, iteration: int) -> dict[str, float] | None:
        """Play every evaluation task; None where the run has no evaluation split."""
        if not self.eval_tasks:
            return None
        started = time.perf_counter()
        samples = self.config.eval.n_samples_per_prompt
        requests = schedule.evaluation_requests(self.eval_tasks, samples, iteration, self._seed)
        episodes = self._play(requests, iteration, "evaluation")
        metrics = evaluation_metrics(episodes) | {"time/eval": time.perf_counter() - started}
        self.run.append_eval(iteration, metrics, split=self.config.env.eval_split)
        self.backend.track(iteration, metrics, evaluation=True)
        self.observer.evaluation(iteration, metrics)
        return metrics

    def _evaluate_once(self, iteration: int) -> None:
        """Evaluate, unless the run did before it was interrupted."""
        if all(row["iteration"] != iteration for row in self.run.evals()):
            self.evaluate(iteration)

    def _play(self, requests: list[EpisodeRequest], iteration: int, phase: str) -> list[Episode]:
        self.observer.phase(iteration, phase, len(requests))
        parameters = sampling(self.config, evaluation=phase == "evaluation")
        episodes = self.backend.rollout(requests, parameters, self.observer.episode)
        if all(episode.faulted or not episode.steps for episode in episodes):
            when = f"after iteration {iteration}" if phase == "evaluation" else f"of iteration {iteration}"
            cause = " ".join(episodes[0].error.split()).rstrip(".")
            raise RunError(
                f"no episode of the {phase} {when} could be played ({len(episodes)} failed, the first with: {cause}); "
                f"mend the environment {self.config.env.name}, its options, or --data.max_len"
            )
        return episodes

    def _credit(self, episodes: list[Episode]) -> CreditResult | None:
        if not any(episode.steps for episode in episodes):
            return None
        batch = StepBatch.from_episodes(episodes, invalid=invalid_weight(self.config))
        return self.estimator(batch, self.options)

    def _save(self, iteration: int) -> None:
        # The iteration is the cursor: tasks, seeds and schedule follow from it (see ``schedule``).
        with _timed(self._carried, "time/checkpoint"):
            self.backend.save_checkpoint(f"global_step{iteration}", {"iteration": iteration})


@contextmanager
def _timed(metrics: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        metrics[name] = time.perf_counter() - started


def _credit_table(
    episodes: Sequence[Episode], result: CreditResult | None
) -> dict[tuple[str, str, int], dict[str, float]]:
    """Credit per step, for the rollout records; the order of rows is that of ``StepBatch.from_episodes``."""
    if result is None:
        return {}
    keys = [(episode.group, episode.trajectory, step.index) for episode in episodes for step in episode.steps]
    columns: dict[str, Callable[[int], float]] = {
        "advantage": lambda row: float(result.advantage[row]),
        "return": lambda row: float(result.return_[row]),
        "value": lambda row: float(result.value[row]),
        "td_residual": lambda row: float(result.td_residual[row]),
        "state_group_size": lambda row: float(result.state_group_size[row]),
    }
    return {
        key: {name: column(row) for name, column in columns.items()} for row, key in enumerate(keys) if result.keep[row]
    }
