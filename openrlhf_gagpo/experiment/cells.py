"""The cells of a matrix: recipe, command and folder of each, and whether a folder holds what the matrix asks for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.recipes import DERIVED_ORIGINS
from openrlhf_gagpo.config.resolve import Config, resolve
from openrlhf_gagpo.errors import ConfigError, RunFolderError
from openrlhf_gagpo.experiment.matrix import Algorithm, Matrix
from openrlhf_gagpo.runfolder import RunFolder

__all__ = ["GAGPO", "OWN", "SHARED", "Cell", "Plan", "check_unchanged", "differing", "is_finished", "plan"]

GAGPO = (sys.executable, "-m", "openrlhf_gagpo.cli.main")

SHARED = (
    "env.name",
    "env.options",
    "env.max_steps",
    "env.split",
    "env.eval_split",
    "eval.tasks",
    "eval.tasks_between",
    "eval.temperature",
    "eval.n_samples_per_prompt",
    "eval.greedy",
    "rollout.batch_size",
)
"""Settings that have to be equal in runs that one table compares: task order, environment and evaluation follow."""
OWN = (
    "run_dir",
    "train.seed",
    "actor.model_name_or_path",
    "env.placement",
    "env.workers",
    "critic.model_name_or_path",
    "ckpt.path",
    "ckpt.output_dir",
    "logger.wandb.run_name",
)
"""Settings in which the seeds of one algorithm may differ."""


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    setting: str
    algorithm: str
    seed: int
    folder: Path
    record: Path
    """Folder of what compare keeps about the run; a run folder takes no strange files before it is one."""
    recipe: Path
    model: Path | None
    """Folder of the shared start, or None if the recipe names the model."""
    flag: str = ""
    value: Any = None
    """Value of the tuned flag ``flag``; None without one."""

    @property
    def name(self) -> str:
        """Name in messages."""
        tuned = "" if self.value is None else f"/{self.flag}={self.value}"
        return f"{self.setting}/{self.algorithm}{tuned}/seed{self.seed}"

    def arguments(self) -> list[str]:
        """Return the arguments of ``gagpo train``."""
        words = ["--config", str(self.recipe), "--run_dir", str(self.folder), "--train.seed", str(self.seed)]
        # Its default is the name of the folder, which cells of all algorithms share.
        words += ["--logger.wandb.run_name", self.name]
        if self.model is not None:
            words += ["--actor.model_name_or_path", str(self.model)]
        if self.value is not None:
            words += [f"--{self.flag}", str(self.value)]
        return words


@dataclass(frozen=True)
class Plan:
    """A matrix in a folder: written recipes, and the configuration of each algorithm in each setting."""

    matrix: Matrix
    out: Path
    recipes: Mapping[tuple[str, str], Path]
    """By setting and algorithm."""
    configs: Mapping[tuple[str, str], Config]

    def final(self, chosen: Mapping[tuple[str, str], Any]) -> list[Cell]:
        """Return the cells of the final table, seed by seed.

        Args:
            chosen: value of the tuned flag by setting and algorithm; pairs without one are left out if there is a
                tuning stage.
        """
        tuning = self.matrix.tuning
        return [
            self._cell(setting, algorithm, seed, chosen.get((setting, algorithm)))
            for seed in self.matrix.seeds
            for setting, algorithm in self.recipes
            if tuning is None or (setting, algorithm) in chosen
        ]

    def tuning(self) -> list[Cell]:
        """Return the cells of the tuning stage."""
        tuning = self.matrix.tuning
        if tuning is None:
            return []
        return [
            self._cell(setting, algorithm, seed, value, stage="tuning")
            for seed in tuning.seeds
            for setting, algorithm in self.recipes
            for value in tuning.values
        ]

    def start(self, setting: str, seed: int) -> Path:
        """Return the folder of the start that all algorithms of a setting and seed share."""
        return self.out / "starts" / setting / f"seed{seed}"

    def _cell(self, setting: str, algorithm: str, seed: int, value: Any, stage: str = "cells") -> Cell:
        matrix = self.matrix
        flag = matrix.tuning.flag if matrix.tuning else ""
        parts = [stage, setting, algorithm, *([f"{flag}={value}"] if stage == "tuning" else []), f"seed{seed}"]
        model = self.start(setting, seed) / "model" if matrix.warmstart else None
        folder, record = self.out.joinpath(*parts), self.out.joinpath("records", *parts)
        return Cell(setting, algorithm, seed, folder, record, self.recipes[setting, algorithm], model, flag, value)


def plan(matrix: Matrix, out: Path) -> Plan:
    """Write the recipe of every setting and algorithm below ``out`` and check that each can be resolved.

    Raises:
        ConfigError: a flag of the matrix is unknown or wrong, or algorithms of one setting differ in environment,
            evaluation or task order.
    """
    recipes, configs = {}, {}
    for setting in matrix.settings:
        for algorithm in matrix.algorithms:
            key = setting, algorithm.name
            recipes[key] = _write_recipe(matrix, out, setting, algorithm)
            configs[key] = resolve(["--config", str(recipes[key])])
        first = matrix.algorithms[0].name
        for algorithm in matrix.algorithms[1:]:
            before, now = (configs[setting, name].to_dict()["values"] for name in (first, algorithm.name))
            if name := next(differing(before, now, SHARED), None):
                raise ConfigError(
                    f"{algorithm.name} and {first} differ in {name} ({now.get(name)!r} and {before.get(name)!r}) in "
                    f"setting {setting} of {matrix.path}, so their runs could not be compared; set it for all of them"
                )
    made = Plan(matrix, out, recipes, configs)
    # Once for each value, since a wrong one would otherwise show up only when its cell starts.
    for cell in made.tuning():
        if matrix.tuning and cell.seed == matrix.tuning.seeds[0]:
            resolve(cell.arguments())
    return made


def differing(before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Yield the names whose values differ between two configurations."""
    return (name for name in names if before.get(name) != now.get(name))


def _write_recipe(matrix: Matrix, out: Path, setting: str, algorithm: Algorithm) -> Path:
    """Write the layers of one recipe, from base to setting, and return the last.

    They stay apart, because options that belong to another algorithm are left out only below the layer that chooses.
    """
    folder = out / "recipes" / setting / algorithm.name
    below = algorithm.recipe or matrix.base
    layers = (("1-common", matrix.common), ("2-algorithm", algorithm.flags), ("3-setting", matrix.settings[setting]))
    for name, flags in layers:
        file = folder / f"{name}.yaml"
        content = {"base": os.path.relpath(below, folder), **(flags or {})}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror}; name another folder") from error
        below = file
    return below


def is_finished(cell: Cell) -> bool:
    """Return whether the cell's folder holds a finished run."""
    try:
        return bool(RunFolder.open(cell.folder).info()["state"] == "finished")
    except RunFolderError:
        return False


def check_unchanged(cell: Cell, config: Config) -> None:
    """Raise ``ConfigError`` if a finished cell was run with other settings than the matrix gives it now.

    Args:
        config: of the cell's setting and algorithm, without what belongs to the cell alone.
    """
    kept = RunFolder.open(cell.folder).config().get("values", {})
    now = config.to_dict()["values"]
    names = [name for name in now if config.origin(name) not in DERIVED_ORIGINS and name not in OWN]
    if cell.value is not None:
        now[cell.flag] = all_flags()[cell.flag].coerce(cell.value, cell.flag)
    if cell.model is None:
        names.append("actor.model_name_or_path")
    if name := next(differing(kept, now, names), None):
        raise ConfigError(
            f"the finished cell {cell.name} was run with {name} {kept.get(name)!r}, and the matrix now says "
            f"{now.get(name)!r}; set it back, delete {cell.folder}, or name another --out"
        )
