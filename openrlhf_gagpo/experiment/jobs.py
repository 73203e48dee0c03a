"""What has to be run: the start of a setting and seed, and a cell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openrlhf_gagpo.config.reading import env_options
from openrlhf_gagpo.config.resolve import Config
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.experiment.cells import GAGPO, Cell, is_finished
from openrlhf_gagpo.experiment.matrix import Warmstart
from openrlhf_gagpo.experiment.processes import Outcome
from openrlhf_gagpo.runfolder import RunFolder

__all__ = ["RECORD", "CellJob", "StartJob", "read_json", "start_evaluation", "write_json"]

RECORD = "cell.json"
_START = "start.json"
_SEED_STRIDE = 1000
"""Distance of a remade start's seed, so that it is not the start of another seed of the matrix."""


class CellJob:
    """Runs one cell with ``gagpo train``, unless its folder holds the finished run already."""

    def __init__(self, cell: Cell, config: Config, submit: str, side_by_side: int) -> None:
        self.cell = cell
        self.config = config
        self.submit = submit
        self.side_by_side = side_by_side
        self.kept = is_finished(cell)
        self._tried = self.kept
        self._submission = ""

    @property
    def folder(self) -> Path:
        return self.cell.record

    @property
    def problem(self) -> str:
        """Why the cell has no finished run, as a clause; "" if it has one."""
        if is_finished(self.cell):
            return ""
        if self.cell.model is not None and not self.cell.model.is_dir():
            return "its start could not be made"
        attempts = read_json(self.folder / RECORD).get("attempts", [])
        if not attempts:
            return "it was not run"
        lines = attempts[-1]["stderr"].strip().splitlines()
        return f"exit status {attempts[-1]['exit_status']}{f', {lines[-1]}' if lines else ''}"

    def next(self) -> Sequence[str] | None:
        if self._tried or (self.cell.model is not None and not self.cell.model.is_dir()):
            return None
        self._tried = True
        words, run = [*GAGPO, "train", *self.cell.arguments()], self.cell.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.submit == "ray":
            _stop(read_json(self.folder / RECORD).get("submission", ""))
        if _can_resume(run):
            words.append("--ckpt.load_enable")
        elif run.exists():
            shutil.rmtree(run)
        if self.submit == "ray":
            self._submission = f"gagpo-{self.cell.name.replace('/', '-')}-{time.time_ns()}"
            words = [*_ray("submit"), "--submission-id", self._submission, "--", *words]
        return words

    def started(self, pid: int) -> None:
        self._record({"pid": pid, "submission": self._submission})

    def ended(self, outcome: Outcome) -> None:
        # What an attempt that led to nothing cost is part of what the cell cost. One that led to a finished run belongs
        # to that run, which was deleted, perhaps since the matrix has other settings now.
        attempts = read_json(self.folder / RECORD).get("attempts", [])
        finished = max((number for number, earlier in enumerate(attempts, 1) if not earlier["exit_status"]), default=0)
        self._record({"attempts": [*attempts[finished:], asdict(outcome) | {"ended": _now()}]})
        if is_finished(self.cell):
            shutil.copy(self.folder / RECORD, self.cell.folder / RECORD)

    def _record(self, facts: dict[str, Any]) -> None:
        cell = self.cell
        identity = {"setting": cell.setting, "algorithm": cell.algorithm, "seed": cell.seed}
        tuned = {} if cell.value is None else {"flag": cell.flag, "value": cell.value}
        known = read_json(self.folder / RECORD)
        write_json(self.folder / RECORD, known | identity | tuned | {"side_by_side": self.side_by_side} | facts)


class StartJob:
    """Makes the starting model of one setting and seed, again with another seed until its success is in range."""

    def __init__(self, setting: str, seed: int, folder: Path, recipe: Path, config: Config, how: Warmstart) -> None:
        self.setting = setting
        self.seed = seed
        self.folder = folder
        self.how = how
        self._recipe = recipe
        self._config = config
        self._tries: list[dict[str, Any]] = []
        self._evaluates = False
        self._failed = ""
        self.kept = (folder / _START).is_file() and (folder / "model").is_dir()
        if self.kept and (before := read_json(folder / _START)["flags"]) != self.flags():
            changed = next(name for name in {**before, **self.flags()} if before.get(name) != self.flags().get(name))
            raise ConfigError(
                f"the start of {self.name} was made with {changed} {before.get(changed)!r}, and the matrix now says "
                f"{self.flags().get(changed)!r}; set it back, delete {folder} and its cells, or name another --out"
            )

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"{self.setting}/seed{self.seed}"

    @property
    def problem(self) -> str:
        """Why there is no start, as a clause; "" if there is one."""
        return "" if (self.folder / _START).is_file() else self._failed or "it was not made"

    @property
    def tries(self) -> list[dict[str, Any]]:
        """Seed and success of each start that was made, the kept one last."""
        tries: list[dict[str, Any]] = read_json(self.folder / _START).get("tries", self._tries)
        return tries

    @property
    def evaluation(self) -> Path | None:
        """Run folder in which the start was evaluated; None if it was not."""
        return self._check(len(self.tries) - 1) if self.how.measured else None

    def _check(self, number: int) -> Path:
        return _check(self.folder, number)

    def flags(self) -> dict[str, Any]:
        """Return the flags of ``gagpo warmstart`` without seed and folder."""
        config = self._config
        derived: dict[str, Any] = {
            "env.name": config.env.name,
            "env.options": env_options(config),
            "env.plugin": list(config.env.plugin),
            "env.split": config.env.split,
            "rollout.history_length": config.rollout.history_length,
            "rollout.list_actions": config.rollout.list_actions,
        }
        if config.rollout.context == "transcript":
            del derived["rollout.history_length"]
            derived["rollout.context"] = config.rollout.context
        return derived | dict(self.how.flags)

    def arguments(self, seed: int) -> list[str]:
        """Return the arguments of ``gagpo warmstart``."""
        # Where it matters, compare evaluates starts by the cells' own plan.
        words = ["--out", str(self._made), "--seed", str(seed), "--eval.tasks", "0"]
        for name, value in self.flags().items():
            if isinstance(value, bool):
                words += [f"--{name}"] if value else []
            elif isinstance(value, dict):
                words += [f"--{name}", json.dumps(value)] if value else []
            else:
                words += [word for item in _each(value) for word in (f"--{name}", str(item))]
        return words

    @property
    def _made(self) -> Path:
        return self.folder / "made"

    def next(self) -> Sequence[str] | None:
        if self.problem == "" or self._failed:
            return None
        if self._evaluates:
            check = str(self._check(len(self._tries)))
            flags = ["--actor.model_name_or_path", str(self._made), "--run_dir", check, "--eval_only"]
            seed = ["--train.seed", str(self.seed), "--no_report"]
            return [*GAGPO, "train", "--config", str(self._recipe), *flags, *seed]
        if not self._tries and self.folder.exists():
            shutil.rmtree(self.folder)  # A start that was interrupted.
        elif self._made.exists():
            shutil.rmtree(self._made)
        self.folder.mkdir(parents=True, exist_ok=True)
        return [*GAGPO, "warmstart", *self.arguments(self._next_seed())]

    def started(self, pid: int) -> None:
        pass

    def ended(self, outcome: Outcome) -> None:
        if outcome.exit_status:
            lines = outcome.stderr.strip().splitlines()
            self._failed = f"exit status {outcome.exit_status}{f', {lines[-1]}' if lines else ''}"
        elif not self._evaluates and self.how.measured:
            self._evaluates = True
        else:
            self._judge()

    def _next_seed(self) -> int:
        return self.seed + _SEED_STRIDE * len(self._tries)

    def _judge(self) -> None:
        """Keep the start that was made, or count it and go on to the next."""
        tried: dict[str, Any] = {"seed": self._next_seed()}
        low, high = self.how.accept
        if self._evaluates:
            row = RunFolder.open(self._check(len(self._tries))).evals()[-1]
            tried |= {"success": row["eval/success"], "greedy_success": row.get("eval/greedy_success")}
        self._evaluates = False
        self._tries.append(tried)
        if low <= tried.get("success", low) <= high:
            self._made.rename(self.folder / "model")
            write_json(self.folder / _START, {"tries": self._tries, "flags": self.flags()})
        elif len(self._tries) == self.how.tries:
            found = ", ".join(f"{made['success']:.3f}" for made in self._tries)
            self._failed = f"none of {len(self._tries)} starts has a success in [{low:g}, {high:g}] ({found})"


def start_evaluation(folder: Path) -> Path | None:
    """Return the run folder in which the start in ``folder`` was evaluated; None if it was not."""
    made = read_json(folder / _START).get("tries", [])
    evaluation = _check(folder, len(made) - 1)
    return evaluation if evaluation.is_dir() else None


def _check(folder: Path, number: int) -> Path:
    """Return the run folder that evaluates the start of a number, from 0, that was made in ``folder``."""
    return folder / f"check{number}"


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _can_resume(folder: Path) -> bool:
    """Return whether the folder holds a run with a checkpoint."""
    run = RunFolder(folder)
    return run.info_path.is_file() and run.has_checkpoint()


def _ray(what: str) -> list[str]:
    return ["ray", "job", what, "--address", os.environ.get("RAY_JOB_ADDRESS", "http://127.0.0.1:8265")]


def _stop(submission: str) -> None:
    """Stop a job that a killed compare may have left behind; one that has ended is none of ours."""
    if submission:
        subprocess.run([*_ray("stop"), submission], capture_output=True, check=False)


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a file; empty if there is none."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write an object so that a kill leaves the old or the new content."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
