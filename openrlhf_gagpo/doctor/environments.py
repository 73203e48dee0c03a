"""Whether environments can be played: their packages and their data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent_envs import registry
from agent_envs.errors import EnvError
from openrlhf_gagpo.doctor.finding import Finding, Level

__all__ = ["check_environments", "check_one_environment"]

_TIMEOUT_S = 600.0


def check_environments() -> Iterator[Finding]:
    """Look for the packages and the data of every environment; what is missing is a warning, as no run needs all."""
    for name in registry.names():
        yield _declared(name)


def check_one_environment(name: str, options: Sequence[str], plugins: Sequence[str]) -> Finding:
    """Run ``gagpo env check`` on the environment that a run will play, in a process of its own.

    Args:
        options: values of ``--env.options``.
        plugins: values of ``--env.plugin``.
    """
    command = [sys.executable, "-m", "openrlhf_gagpo.cli.main", "env", "check", name]
    command += [word for option in options for word in ("--env.options", option)]
    command += [word for plugin in plugins for word in ("--env.plugin", plugin)]
    subject = f"environment {name}"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Finding(
            Level.PROBLEM, subject, f"its check did not end within {_TIMEOUT_S:.0f} s", " ".join(command[2:])
        )
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or ["it failed without a word"])[-1].removeprefix("gagpo: error: ")
        return Finding(Level.PROBLEM, subject, cause, f"gagpo env check {name} shows more")
    tasks = next((line for line in done.stdout.splitlines() if line.startswith("tasks")), "")
    return Finding(Level.OK, subject, f"ready: {' '.join(tasks.split())}")


def _declared(name: str, options: Mapping[str, Any] | None = None) -> Finding:
    subject = f"environment {name}"
    try:
        cls = registry.get(name)
        if hint := cls.needs.hint():
            return Finding(Level.WARNING, subject, hint)
        found = list(cls.find_data(**(options or {})))
    except (EnvError, ValueError) as error:
        return Finding(Level.WARNING, subject, str(error).rstrip("."))
    except Exception as error:
        return Finding(Level.WARNING, subject, f"failed in find_data: {type(error).__name__}: {error}")
    return Finding(Level.OK, subject, " ".join(found[-1].split()) if found else "needs no data")
