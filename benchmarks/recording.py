"""Helpers of the scripts that record whole runs: starting commands, and keeping the data that readers need to check."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["REPOSITORY", "gagpo", "keep", "machine"]

REPOSITORY = Path(__file__).resolve().parents[1]
_KEPT = ("run.json", "config.yaml", "metrics.jsonl", "eval.jsonl")


def gagpo(*arguments: str) -> float:
    """Run a ``gagpo`` command and return its duration in seconds."""
    started = time.perf_counter()
    program = "from openrlhf_gagpo.cli.main import main; raise SystemExit(main())"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, *arguments], check=True)
    return time.perf_counter() - started


def keep(runs: Iterable[Path], out: Path, scratch: str) -> list[Path]:
    """Copy the runs' configurations and metrics to ``out``, without the paths of the machine they ran on.

    Call it after the last run, because results belong to the repository and a run records whether that was modified.
    """
    kept = []
    for run in runs:
        folder = out / run.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in _KEPT:
            text = (run / name).read_text(encoding="utf-8")
            text = text.replace(scratch, "runs").replace(str(REPOSITORY), ".")
            (folder / name).write_text(text, encoding="utf-8")
        kept.append(folder)
    return kept


def machine() -> dict[str, Any]:
    """Return the facts about the machine on which the figures depend."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "platform": platform.platform()}
