"""The folder of one training run: its files, and how they stay readable when the run is killed at any moment.

===========================  =====================================================================================
``run.json``                 state, start time, command line, seed, package versions, git commit, machine, prompt hash,
                             facts that the environment and the backend record
``config.yaml``              the resolved configuration with the origin of every value
``prompt.txt``               the resolved prompt template
``metrics.jsonl``            one JSON object per iteration
``eval.jsonl``               one JSON object per evaluation
``advice.jsonl``             one JSON object per kind of advice: iteration, kind, text; absent if there is none
``rollouts/``                ``iter_00001.jsonl.gz`` and so on: the episodes of an iteration
``faults/``                  the traceback of each distinct failure of the environment, named as in the episodes
``checkpoints/``, ``model/`` training state; the exported final model
``libraries.log``            what the libraries wrote to stdout and stderr; absent if they wrote nothing
``report.html``              written at the end
``.lock``                    held by the process that runs there
===========================  =====================================================================================
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

from openrlhf_gagpo import __version__, machine
from openrlhf_gagpo.errors import RunFolderError
from openrlhf_gagpo.files import write_atomic
from openrlhf_gagpo.output import LIBRARIES_LOG

__all__ = ["RunFolder", "State", "git_commit", "package_versions"]

State = Literal["running", "finished", "interrupted", "failed"]

_FORMAT = 2
"""Version of the folder's contents. Folders without a number are version 1, whose episodes lack ``info``."""

_PACKAGES = (
    "openrlhf",
    "torch",
    "transformers",
    "vllm",
    "deepspeed",
    "ray",
    "numpy",
)
_ROLLOUT = re.compile(r"iter_(\d+)\.jsonl\.gz")


class RunFolder:
    """One run on disk; construct it with ``create`` or ``open``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info_path = path / "run.json"
        self.config_path = path / "config.yaml"
        self.prompt_path = path / "prompt.txt"
        self.metrics_path = path / "metrics.jsonl"
        self.eval_path = path / "eval.jsonl"
        self.advice_path = path / "advice.jsonl"
        self.rollouts_dir = path / "rollouts"
        self.faults_dir = path / "faults"
        self.stacks_dir = path / "stacks"
        self.checkpoints_dir = path / "checkpoints"
        self.model_dir = path / "model"
        self.log_path = path / LIBRARIES_LOG
        self.report_path = path / "report.html"

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        prompt: str,
        *,
        seed: int | None = None,
        command: Sequence[str] | None = None,
        packages: Sequence[str] = (),
    ) -> RunFolder:
        """Start a run in ``path`` (created if absent).

        ``config`` is written to ``config.yaml`` as given: plain YAML types, either the values alone or
        ``{"values": ..., "origins": {dotted name: origin}}``. ``command`` defaults to this process's command line.
        ``packages`` are further packages whose versions are recorded, besides those of the stack.
        Raises ``RunFolderError`` if the folder already holds a run or parts of one.
        """
        run = cls(Path(path))
        own = {
            item.name for item in (run.info_path, run.config_path, run.metrics_path, run.eval_path, run.rollouts_dir)
        }
        if run.path.exists() and not run.path.is_dir():
            raise RunFolderError(f"{run.path} is a file; give a folder for the run.")
        if run.path.is_dir() and (found := own & {item.name for item in run.path.iterdir()}):
            raise RunFolderError(
                f"{run.path} already holds a run ({sorted(found)[0]} exists); choose another folder or resume that run."
            )
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            for folder in (run.rollouts_dir, run.checkpoints_dir):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"{run.path} cannot be written: {error.strerror}; give another folder for the run."
            ) from error
        write_atomic(run.config_path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        write_atomic(run.prompt_path, prompt)
        for file in (run.metrics_path, run.eval_path):
            file.touch()
        # Written last, because its presence makes the folder a run.
        run._write_info(
            {
                "state": "running",
                "format": _FORMAT,
                "started": _now(),
                "command": list(sys.argv if command is None else command),
                "seed": seed,
                "git_commit": git_commit(),
                "python": sys.version.split()[0],
                "machine": machine.summary(),
                "packages": package_versions(packages),
                "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
            }
        )
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open an existing run without changing anything on disk. Raises ``RunFolderError`` for anything else."""
        run = cls(Path(path))
        if not run.path.exists():
            raise RunFolderError(f"There is no run folder at {run.path}.")
        if not run.info_path.is_file():
            raise RunFolderError(f"{run.path} is not a run folder: it has no run.json.")
        run.info()
        return run

    def info(self) -> dict[str, Any]:
        """Return the contents of ``run.json``."""
        try:
            info = json.loads(self.info_path.read_text(encoding="utf-8"))
        except ValueError:
            info = None
        if not isinstance(info, dict) or "state" not in info:
            raise RunFolderError(f"{self.info_path} is damaged: it is not the JSON object that a run writes.")
        if not isinstance(version := info.get("format", 1), int) or version > _FORMAT:
            raise RunFolderError(
                f"{self.path} was written by a newer release (format {version}, this one reads up to {_FORMAT}); "
                "update openrlhf-gagpo."
            )
        return info

    def config(self) -> dict[str, Any]:
        """Return the contents of ``config.yaml``; empty if the file is missing."""
        try:
            loaded = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except yaml.YAMLError:
            raise RunFolderError(f"{self.config_path} is damaged: it is not valid YAML.") from None
        return loaded if isinstance(loaded, dict) else {}

    def prompt(self) -> str:
        """Return the resolved prompt template; empty if the file is missing."""
        return self.prompt_path.read_text(encoding="utf-8") if self.prompt_path.is_file() else ""

    def add_facts(self, facts: Mapping[str, str]) -> None:
        """Add the backend's facts about its start (devices, seconds) to ``run.json``."""
        self._write_info(self.info() | {"backend": dict(facts)})

    def add_environment(self, record: Mapping[str, object]) -> None:
        """Add the environment's facts about its data and rules to ``run.json``."""
        self._write_info(self.info() | {"environment": dict(record)})

    def set_state(self, state: State, error: str = "") -> None:
        """Record the state of the run; ``error`` says why it failed."""
        info = self.info() | {"state": state}
        info.pop("ended", None)
        info.pop("error", None)
        if state != "running":
            info["ended"] = _now()
        if error:
            info["error"] = error
        self._write_info(info)

    @contextmanager
    def tracked(self) -> Iterator[RunFolder]:
        """Record the state around a block: running inside, then finished, interrupted (Ctrl-C) or failed."""
        self.set_state("running")
        try:
            yield self
        except KeyboardInterrupt:
            self.set_state("interrupted")
            raise
        except BaseException as error:
            # A full disk must not hide what the run ended with.
            with suppress(OSError):
                self.set_state("failed", f"{type(error).__name__}: {error}")
            raise
        self.set_state("finished")

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint in the folder, also one of the form of release 0.1."""
        found = (self.checkpoints_dir.glob(name) for name in ("global_step*", "_actor/global_step*"))
        return any(next(paths, None) for paths in found)

    def append_metrics(self, iteration: int, values: Mapping[str, float | None]) -> None:
        """Append the row of one training iteration and force it to disk."""
        _append(self.metrics_path, {"iteration": iteration} | dict(values))

    def append_eval(self, iteration: int, values: Mapping[str, float | None], *, split: str) -> None:
        """Append the row of one evaluation after ``iteration`` iterations (0: before training)."""
        _append(self.eval_path, {"iteration": iteration, "split": split} | dict(values))

    def append_advice(self, iteration: int, kind: str, text: str) -> None:
        """Append what a user should know about the run, first seen after ``iteration`` iterations."""
        _append(self.advice_path, {"iteration": iteration, "kind": kind, "text": text})

    def advice(self) -> list[dict[str, Any]]:
        """Return the rows of ``advice.jsonl``; none if the run has no such file."""
        return _read(self.advice_path)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of ``metrics.jsonl`` in order, without an incomplete last line; ``null`` means not finite."""
        return _read(self.metrics_path)

    def evals(self) -> list[dict[str, Any]]:
        """Return the rows of ``eval.jsonl`` in the same way."""
        return _read(self.eval_path)

    def rollout_path(self, iteration: int) -> Path:
        """Return the file for the episodes of an iteration."""
        return self.rollouts_dir / f"iter_{iteration:05d}.jsonl.gz"

    def rollout_iterations(self) -> list[int]:
        """Return the iterations with recorded episodes, ascending."""
        if not self.rollouts_dir.is_dir():
            return []
        matches = (_ROLLOUT.fullmatch(item.name) for item in self.rollouts_dir.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def fault_path(self, name: str) -> Path:
        """Return where the traceback of a fault is kept."""
        return self.faults_dir / f"{name}.txt"

    def faults(self) -> list[str]:
        """Return the names of all faults that are kept, sorted."""
        return sorted(path.stem for path in self.faults_dir.glob("*.txt"))

    def add_fault(self, name: str, error: str, traceback: str) -> None:
        """Write the traceback of an environment's failure, unless one of that name exists."""
        path = self.fault_path(name)
        if not path.exists():
            self.faults_dir.mkdir(exist_ok=True)
            write_atomic(path, f"{error}\n\n{traceback}")

    def fault(self, name: str) -> str:
        """Return the error and the traceback of a fault; "" if the folder has none of that name."""
        path = self.fault_path(name)
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def resume(self, iteration: int) -> None:
        """Go back to the end of ``iteration``, after which the loaded checkpoint was written.

        Rows and recorded episodes of later iterations are removed, since those iterations are played again, and a
        line that was being written when the run died is dropped. A second call removes nothing more.
        """
        for file in filter(Path.is_file, (self.metrics_path, self.eval_path, self.advice_path)):
            kept = [row for row in _read(file) if row["iteration"] <= iteration]
            write_atomic(file, "".join(_line(row) for row in kept))
        for later in self.rollout_iterations():
            if later > iteration:
                self.rollout_path(later).unlink()
        info = self.info()
        resumed = [*info.get("resumed", []), {"time": _now(), "iteration": iteration}]
        self._write_info(info | {"resumed": resumed, "format": _FORMAT})
        self.set_state("running")

    def _write_info(self, info: Mapping[str, Any]) -> None:
        write_atomic(self.info_path, json.dumps(info, indent=2) + "\n")


def _line(row: Mapping[str, Any]) -> str:
    # JSON has no NaN; null keeps the files readable by every other tool.
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(finite, allow_nan=False, default=_plain) + "\n"


def _plain(value: Any) -> float | int | None:
    """Convert numpy and torch scalars to Python numbers."""
    item = value.item()
    return item if not isinstance(item, float) or math.isfinite(item) else None


def _append(file: Path, row: Mapping[str, Any]) -> None:
    _end_last_line(file)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(_line(row))
        stream.flush()
        os.fsync(stream.fileno())


def _end_last_line(file: Path) -> None:
    """Make the file end with a whole line: complete a line that lacks only its end, drop any other partial line."""
    data = file.read_bytes() if file.exists() else b""
    if not data or data.endswith(b"\n"):
        return
    kept, _, tail = data.rpartition(b"\n")
    body = kept + b"\n" if kept else b""
    with suppress(ValueError):
        json.loads(tail)
        body += tail + b"\n"
    write_atomic(file, body.decode("utf-8"))


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("iteration"), int):
                raise ValueError
        except ValueError:
            # A kill can cut only what follows the last line end, because rows are written in one piece.
            if number == len(lines):
                break
            raise RunFolderError(f"{file} is damaged in line {number}: it is not a row that a run writes.") from None
        rows.append(row)
    return rows


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of this package, of the stack and of ``more``, as far as they are installed."""
    versions = {"openrlhf-gagpo": __version__}
    # Named as they are imported; most distributions have the same name.
    distributions = metadata.packages_distributions() if more else {}
    for name in (*_PACKAGES, *(found for package in more for found in distributions.get(package, ())[:1])):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def git_commit() -> str | None:
    """Return the commit of this package's checkout, with "+changes" if it was edited; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # An installed copy may be inside another project's checkout, whose commit would be wrong.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.SubprocessError):
        return None
