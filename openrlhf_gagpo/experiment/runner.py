"""A matrix from its starts to its final cells: what is missing is run, what is finished is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.experiment.cells import Cell, Plan, check_unchanged, is_finished
from openrlhf_gagpo.experiment.jobs import RECORD, CellJob, StartJob, read_json, write_json
from openrlhf_gagpo.experiment.processes import Job, run_jobs
from openrlhf_gagpo.files import hold
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import mean

__all__ = ["Runner", "locked"]

Chosen = dict[tuple[str, str], Any]


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder for one compare; the lock ends with the process, however it ends.

    Raises:
        ConfigError: another compare works in the folder, or it cannot be written.
    """
    try:
        lock = hold(out)
    except BlockingIOError:
        raise ConfigError(f"another gagpo compare works in {out}; wait for it, or name another --out") from None
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}; name another folder") from error
    with lock:
        yield


class Runner:
    """Runs what a plan lacks, at most ``limit`` processes side by side."""

    def __init__(self, plan: Plan, limit: int, console: Console) -> None:
        self.plan = plan
        self.limit = limit
        self.console = console
        self.failed: list[str] = []
        """Names of starts and cells that have no result."""
        self._done = self._total = 0

    def run(self) -> list[Cell]:
        """Run starts, tuning and cells, and return the final cells.

        Raises:
            ConfigError: a finished cell or start was made with other settings. Cells whose value the tuning stage
                chooses can be checked only after it; all others are checked before anything runs.
        """
        matrix = self.plan.matrix
        tuning = self._cell_jobs(self.plan.tuning())
        if matrix.tuning is None:
            final = self._cell_jobs(self.plan.final({}))
        starts = self.starts()
        self._run("start", starts)
        if matrix.tuning is not None:
            self._run("tuning", tuning)
            final = self._cell_jobs(self.plan.final(self._choose(tuning)))
        self._run("cell", final)
        return [job.cell for job in final]

    def finished(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells that hold a finished run."""
        return [cell for cell in cells if is_finished(cell)]

    def starts(self) -> list[StartJob]:
        """Return the jobs that make the shared starts."""
        matrix, plan = self.plan.matrix, self.plan
        if matrix.warmstart is None:
            return []
        seeds = [*(matrix.tuning.seeds if matrix.tuning else ()), *matrix.seeds]
        first = matrix.algorithms[0].name
        return [
            StartJob(
                setting,
                seed,
                plan.start(setting, seed),
                plan.recipes[setting, first],
                plan.configs[setting, first],
                matrix.warmstart,
            )
            for seed in seeds
            for setting in matrix.settings
        ]

    def _cell_jobs(self, cells: Iterable[Cell]) -> list[CellJob]:
        jobs = []
        for cell in cells:
            config = self.plan.configs[cell.setting, cell.algorithm]
            if is_finished(cell):
                check_unchanged(cell, config)
            jobs.append(CellJob(cell, config, self.plan.matrix.submit, self.limit))
        return jobs

    def _run(self, kind: str, jobs: Sequence[CellJob] | Sequence[StartJob]) -> None:
        self._done, self._total = 0, len(jobs)

        def done(job: Job) -> None:
            assert isinstance(job, CellJob | StartJob)
            self._done += 1
            line = f"{kind} {self._done}/{self._total} {_name(job)}: {self._outcome(job)}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            if job.problem:
                self.failed.append(_name(job))

        run_jobs(jobs, self.limit, done)

    def _outcome(self, job: CellJob | StartJob) -> str:
        if job.problem:
            return f"failed ({job.problem})"
        if isinstance(job, StartJob):
            tries = job.tries
            success = f", success {tries[-1]['success']:.3f}" if "success" in tries[-1] else ""
            return f"{'kept' if job.kept else 'made'}{success}, {len(tries) - 1} remade"
        seconds = [attempt["cpu_seconds"] for attempt in read_json(job.folder / RECORD).get("attempts", [])]
        result = f"{self.plan.matrix.primary} {_last(job.cell, self.plan.matrix.primary):.3f}, {sum(seconds):.1f} CPU s"
        return f"{'kept' if job.kept else 'finished'}, {result}"

    def _choose(self, jobs: Sequence[CellJob]) -> Chosen:
        """Choose the value with the best mean of the primary metric for each setting and algorithm.

        A value with a failed cell is not chosen. The means are written to ``tuning.json``.
        """
        matrix = self.plan.matrix
        assert matrix.tuning is not None
        chosen: Chosen = {}
        record = []
        for setting, algorithm in self.plan.recipes:
            means: dict[Any, float] = {}
            for value in matrix.tuning.values:
                cells = [
                    job.cell
                    for job in jobs
                    if (job.cell.setting, job.cell.algorithm, job.cell.value) == (setting, algorithm, value)
                ]
                means[value] = mean(_last(cell, matrix.primary) for cell in cells)
            whole = {value: found for value, found in means.items() if math.isfinite(found)}
            best = max(whole, key=lambda value: whole[value], default=None)
            if best is None:
                self.failed.append(f"{setting}/{algorithm} (no value of {matrix.tuning.flag} has all its tuning cells)")
            else:
                chosen[setting, algorithm] = best
            text = {str(value): None if math.isnan(found) else found for value, found in means.items()}
            row = {"setting": setting, "algorithm": algorithm, "chosen": best, "means": text}
            record.append(row | {"flag": matrix.tuning.flag, "seeds": list(matrix.tuning.seeds)})
        write_json(self.plan.out / "tuning.json", {"primary": matrix.primary, "choices": record})
        return chosen


def _name(job: CellJob | StartJob) -> str:
    return job.cell.name if isinstance(job, CellJob) else f"start {job.name}"


def _last(cell: Cell, metric: str) -> float:
    """Return the metric of the last evaluation; NaN if the cell is not finished or has none."""
    rows: Sequence[Mapping[str, Any]] = RunFolder.open(cell.folder).evals() if is_finished(cell) else []
    value = rows[-1].get(metric) if rows else None
    return math.nan if value is None else float(value)
