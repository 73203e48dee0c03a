"""What the scripts that record whole runs share: starting commands, and keeping what a reader needs to check them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["REPOSITORY", "gagpo", "keep", "machine"]

REPOSITORY = Path(__file__).resolve().parents[1]
_KEPT = ("run.json", "config.yaml", "metrics.jsonl", "eval.jsonl")


def gagpo(*arguments: str) -> float:
    """Run a command of the command line; returns its seconds."""
    started = time.perf_counter()
    program = "from openrlhf_gagpo.cli.main import main; raise SystemExit(main())"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, *arguments], check=True)
    return time.perf_counter() - started


def keep(run: Path, folder: Path, scratch: str) -> None:
    """Copy a run's configuration and metrics to ``folder``, without the paths of the machine it ran on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        text = (run / name).read_text(encoding="utf-8")
        text = text.replace(scratch, "runs").replace(str(REPOSITORY), ".")
        (folder / name).write_text(text, encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures depend on, and a reader of the results cannot see."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "platform": platform.platform()}
