"""The comparison of two versions by phases, on made-up runs."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from support.benchmarks import load
from support.paths import REPOSITORY


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks import one another as scripts do."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))


def run(rows: float, start: float, passes: float, iteration: float, wall: float) -> dict[str, Any]:
    return {
        "rows": rows,
        "cpu": {"start_s": start, "forward_and_update_s": passes, "iteration_s": iteration},
        "median_s": {"forward": wall, "update": 2 * wall, "iteration": 5 * wall},
    }


def test_phases_are_compared_by_row_and_starts_as_they_are() -> None:
    ratios = load("phases").compared(run(100, 50, 4, 10, 1), run(200, 30, 4, 10, 1))
    assert ratios == pytest.approx(
        {
            "start_cpu": 0.6,
            "forward_and_update_cpu": 0.5,
            "iteration_cpu": 0.5,
            "forward_and_update_wall": 0.5,
            "iteration_wall": 0.5,
        }
    )


def test_cpu_seconds_belong_to_the_process_that_spent_them() -> None:
    burn = "import sys\nwhile __import__('time').process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"
    started = [
        subprocess.Popen([sys.executable, "-c", burn, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for more in (["agent_envs"], [], [])
    ]
    for child in started:
        assert child.stdout is not None
        assert child.stdout.readline() == "\n"
    places = [SimpleNamespace(pid=started[1].pid, name="policy")]
    backend = SimpleNamespace(_places=places, fleet=SimpleNamespace(places=[]))
    seconds = load("stack_cpu").by_role(backend)
    for child in started:
        child.communicate()
    assert seconds["driver"] == pytest.approx(sum(os.times()[:4]), abs=2.0)
    for role in ("environments", "policy", "Ray"):
        assert 0.25 < seconds[role] < 5
