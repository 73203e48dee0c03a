"""Checkpoints of the workers: what policy and critic write and read, in one folder that is complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

from openrlhf_gagpo.backends.checkpoints import UNWRITTEN, Write, read_checkpoint, write_checkpoint
from openrlhf_gagpo.backends.distributed.workers import WorkerGroup, wait_all
from openrlhf_gagpo.training.backend import Restored
from openrlhf_gagpo.training.settings import CheckpointSettings

__all__ = ["CRITIC", "POLICY", "WorkerCheckpoints"]

POLICY, CRITIC = "actor", "critic"
"""DeepSpeed's tags of the models in a checkpoint, each the name of a folder."""


class WorkerCheckpoints:
    """The checkpoints of one run. All workers have to see the folder under the path that it has for this process.

    Args:
        arguments: OpenRLHF's arguments of the run.
        policy, critic: the groups of workers, whose classes have ``write_checkpoint`` and ``read_checkpoint``.
    """

    def __init__(
        self, settings: CheckpointSettings, arguments: SimpleNamespace, policy: WorkerGroup, critic: WorkerGroup | None
    ) -> None:
        # Workers may have another working directory.
        self._settings = replace(settings, path=settings.path.resolve())
        self._policy = policy
        self._groups = [group for group in (policy, critic) if group is not None]
        self._with_state = not arguments.ckpt.disable_ds
        self._with_model: bool = arguments.ckpt.save_hf

    def save(self, tag: str, state: dict[str, Any]) -> None:
        """Write a checkpoint with the loop's ``state``, as far as the run wants it, and remove old ones.

        Raises:
            RunError: it cannot be written.
            ray.exceptions.RayError: a worker failed for another reason.
        """
        loop = json.dumps(state)

        def write(folder: Path) -> None:
            self._call(self._groups, UNWRITTEN, "write_checkpoint", str(folder), loop)

        def write_model(folder: Path) -> None:
            self._call([self._policy], UNWRITTEN, "write_model", str(folder))

        model: Write | None = write_model if self._with_model else None
        write_checkpoint(self._settings, tag, write if self._with_state else None, model)

    def load(self) -> Restored | None:
        """Restore all workers from the newest checkpoint that can be read.

        Raises:
            RunError: there are checkpoints, and none can be read.
        """
        root = self._settings.path
        _adopt(root)

        def read(folder: Path) -> dict[str, Any]:
            policy, *_ = self._call(self._groups, (Exception,), "read_checkpoint", str(folder))
            loop: dict[str, Any] = json.loads(policy[0])
            return loop

        return read_checkpoint(root, read)

    def _call(
        self, groups: Sequence[WorkerGroup], raised: tuple[type[Exception], ...], method: str, *arguments: str
    ) -> list[list[Any]]:
        """Return all answers; what is of a class in ``raised`` is raised as if this process had met it."""
        calls = [(group, group.async_run_method(method, *arguments)) for group in groups]
        try:
            return wait_all(calls, f"the {method.replace('_', ' ')}")
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, raised):
                raise error.cause from error
            raise


def _adopt(root: Path) -> None:
    """Give checkpoints of release 0.1, which OpenRLHF wrote into a folder per model, their present form.

    One that the process dies in the middle of is finished by the next call: the policy's part, without which nothing is
    restored, comes last.
    """
    models = {POLICY: root / "_actor", CRITIC: root / "_critic"}
    for folder in sorted(models[POLICY].glob("global_step*")):
        (root / folder.name).mkdir(exist_ok=True)
        for name, old in reversed(models.items()):
            if (part := old / folder.name).is_dir():
                os.replace(part, root / folder.name / name)
    for old in models.values():
        (old / "latest").unlink(missing_ok=True)
        # It keeps what is not ours.
        with suppress(OSError):
            old.rmdir()
