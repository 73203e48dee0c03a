"""The folder of an evaluation with made-up samples: two tasks with three samples each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from openrlhf_gagpo.evaluation.samples import Sample
from openrlhf_gagpo.evaluation.store import EvaluationFolder
from openrlhf_gagpo.rollout.types import Usage
from support.report_runs import episode

SETTINGS = {
    "policy": "some", "policy_options": {"model": "models/<i>none</i>"}, "agent": "direct", "environment": "doors",
    "split": "test", "tasks": 2, "samples": 3, "seed": 1,
}  # fmt: skip
ABOUT = {"started": "2026-01-02T03:04:05+00:00", "command": ["gagpo", "eval"], "packages": {"numpy": "2"}}


def claimed(path: Path) -> AbstractContextManager[None]:
    """Claim the folder, as the command does while it plays."""
    return EvaluationFolder(path).claim(SETTINGS, ABOUT, "You are at a door.\n")


def sample(number: int, *outcomes: bool, steps: int = 4, faulted: bool = False) -> Sample:
    """The sample ``number`` of two tasks with three samples each, with a trial for every outcome."""
    task, index = divmod(number, 3)
    name = f"evalg{task}t{index}"
    trials = []
    for trial, success in enumerate(outcomes):
        played = episode(number, success=success, steps=steps)
        played.task, played.group = f"door-{task}", f"evalg{task}"
        played.trajectory = f"{name}.{trial}" if trial else name
        trials.append(played)
    if faulted:
        trials[-1] = replace(trials[-1], end_reason="env_fault", error="It broke.", traceback="Traceback: <b>broke</b>")
    return Sample(trials, Usage(1, 10, 5), 0.5)


def written(path: Path, samples: Sequence[Sample]) -> EvaluationFolder:
    """Append these samples to the folder; nobody plays it afterwards."""
    folder = EvaluationFolder(path)
    with claimed(path):
        for item in samples:
            folder.append(item)
    return folder


def everything() -> list[Sample]:
    """All samples: three solved, one of them in its second trial, two at the step limit, and a faulted one."""
    return [
        sample(0, True), sample(1, False, steps=9), sample(2, False, True), sample(3, False, faulted=True),
        sample(4, True), sample(5, False),
    ]  # fmt: skip
