"""The episodes that a run recorded, as steps."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from openrlhf_gagpo.comparison.steps import Own, Source, Steps
from openrlhf_gagpo.config.families import ESTIMATOR, families
from openrlhf_gagpo.config.resolve import Config, resolve
from openrlhf_gagpo.credit import get
from openrlhf_gagpo.errors import ConfigError, RunFolderError
from openrlhf_gagpo.rollout.filtering import keep_informative
from openrlhf_gagpo.rollout.grouping import drop_incomplete
from openrlhf_gagpo.rollout.records import StepKey, read_records
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.table import StepTable

__all__ = ["chosen_iterations", "read_rollouts", "read_run", "steps_of"]

_VALUE, _GAIN = "value", "ig"
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def read_run(path: Path, iterations: str | None) -> Source:
    """Read the recorded iterations of a run, and the estimator and the options that it was trained with.

    Args:
        iterations: one ("3") or a range ("2-5"); the last recorded one if None.

    Raises:
        RunFolderError: the folder is not a run, has no such iterations, or a file of them is damaged.
        ConfigError: its configuration cannot be resolved, or ``iterations`` is neither a number nor a range.
    """
    run = RunFolder.open(path)
    chosen = chosen_iterations(run, iterations)
    config = resolve(["--config", str(run.config_path)])
    own = Own(config.get(ESTIMATOR), config.options(families()[0]))
    parts = []
    for iteration in chosen:
        episodes, credit = _records(run.rollout_path(iteration))
        if config.algo.dynamic_filtering_enable:
            episodes = _filtered(episodes, config)
        parts.append(_with_model_columns(steps_of(episodes, credit, iteration), own.estimator))
    which = f"iteration {chosen[0]}" if len(chosen) == 1 else f"iterations {chosen[0]} to {chosen[-1]}"
    return Source(f"{run.path.resolve().name}, {which}", parts, own)


def read_rollouts(path: Path) -> Source:
    """Read one file of recorded episodes. Raises ``RunFolderError`` if it is damaged or of another kind."""
    return Source(path.name, [steps_of(*_records(path))])


def chosen_iterations(run: RunFolder, iterations: str | None) -> list[int]:
    """Return the recorded iterations that ``iterations`` names, with the errors of ``read_run``."""
    recorded = run.rollout_iterations()
    if not recorded:
        raise RunFolderError(f"{run.path} has no recorded episodes; train with --rollout.record all")
    if iterations is None:
        return recorded[-1:]
    match = _RANGE.fullmatch(iterations)
    if match is None:
        raise ConfigError(f"--iteration is {iterations!r}; give one iteration (3) or a range (2-5)")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ConfigError(f"--iteration {iterations} ends before it begins; give the smaller number first")
    chosen = [iteration for iteration in recorded if first <= iteration <= last]
    if not chosen:
        raise RunFolderError(
            f"{run.path} has no recorded iteration {iterations}; recorded are {recorded[0]} to {recorded[-1]}"
        )
    return chosen


def _records(path: Path) -> tuple[list[Episode], dict[StepKey, dict[str, float]]]:
    try:
        return read_records(path)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror or error}; give another file") from error


def steps_of(episodes: list[Episode], credit: dict[StepKey, dict[str, float]], iteration: int | None = None) -> Steps:
    """Return the steps of all episodes that were played to their end."""
    played, _ = drop_incomplete(episodes, min_group=1)
    columns = StepTable.from_episodes(played).columns()
    keys = list(zip(columns["group"], columns["traj"], columns["step"], strict=True))
    where = {} if iteration is None else {"iteration": iteration}
    identity = [
        {**where, "group": group, "traj": traj, "step": step, "state": state}
        for (group, traj, step), state in zip(keys, columns["state"], strict=True)
    ]
    return Steps(columns, identity, {row: credit[key] for row, key in enumerate(keys) if key in credit})


def _filtered(episodes: list[Episode], config: Config) -> list[Episode]:
    """Return the episodes of the groups that the run trained on."""
    # Imported here, because it imports torch.
    from openrlhf_gagpo.config.settings import group_filter

    chosen = group_filter(config)
    played, _ = drop_incomplete(episodes, get(config.get(ESTIMATOR)).group_min)
    return keep_informative(played, chosen) if chosen else played


def _with_model_columns(steps: Steps, estimator: str) -> Steps:
    """Add what a model computed for the run's estimator: a critic's values, or information gains.

    A critic's value is recorded as what returns are compared with; without one for every step the column stays away. A
    step that has no gain has no record of one.
    """
    needs, columns = get(estimator).needs, dict(steps.columns)
    values = [recorded[_VALUE] for recorded in steps.recorded.values() if _VALUE in recorded]
    if _VALUE in needs and len(values) == len(steps):
        columns[_VALUE] = values
    if _GAIN in needs and any(_GAIN in recorded for recorded in steps.recorded.values()):
        columns[_GAIN] = [steps.recorded.get(row, {}).get(_GAIN, math.nan) for row in range(len(steps))]
    return replace(steps, columns=columns)
