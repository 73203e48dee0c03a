"""Evaluations with the command, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openrlhf_gagpo.cli import eval as command
from openrlhf_gagpo.evaluation.samples import Sample
from openrlhf_gagpo.evaluation.store import EvaluationFolder

__all__ = ["DOORS", "evaluate", "numbers", "samples"]

DOORS = (
    "--env.plugin", str(Path(__file__).with_name("doors_plugin.py")), "--env.name", "locked-doors",
    "--env.split", "valid", "--env.workers", "1", "--policy.model", "m", "--policy.backoff", "0.01",
    "--policy.retries", "1",
)  # fmt: skip


def evaluate(out: Path, *flags: str) -> dict[str, Any]:
    """The result of ``gagpo eval`` with these flags."""
    assert command.main(["--out", str(out), *flags]) == 0
    return EvaluationFolder(out).result()


def numbers(out: Path, *flags: str) -> dict[str, Any]:
    """The numbers of that result."""
    return dict(evaluate(out, *flags)["numbers"])


def samples(out: Path) -> list[Sample]:
    """The finished samples by task."""
    return sorted(EvaluationFolder(out).samples().values(), key=lambda sample: sample.identity)
