"""The CPU seconds of iterations count this process, its living children and those that have ended."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from support.paths import REPOSITORY

# Burns 0.3 CPU seconds, says so and waits for its input to end.
_BURN = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\nsys.stdin.read()"


def test_children_count_while_they_live_and_afterwards() -> None:
    spec = importlib.util.spec_from_file_location("iteration_cpu", REPOSITORY / "benchmarks/iteration_cpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = module.tree_seconds()
    # A shell in between: what it starts counts too.
    child = subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1"; true', sys.executable, _BURN],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "done\n"
    living = module.tree_seconds() - before
    child.communicate()
    ended = module.tree_seconds() - before
    assert 0.25 < living <= ended + 0.05
    assert ended < 30
