"""The help of every command is quick and imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_gagpo.cli.main import COMMANDS
from support.report_runs import make_run

_HEAVY = {"torch", "vllm", "ray", "matplotlib"}
_LIMIT_S = 0.6
_PROGRAM = """
import contextlib, io, json, sys, time
from openrlhf_gagpo.cli.main import main
out = io.StringIO()
with contextlib.redirect_stdout(out):
    try:
        status = main(sys.argv[1:])
    except SystemExit as end:
        status = end.code or 0
seconds = time.process_time()
print(json.dumps([status, out.getvalue(), seconds, sorted(sys.modules)]))
"""
_INSIDE = {"env": ("list", "play", "check", "generate")}
"""Commands of commands."""
CALLS = [("--help",)] + [
    (name, *inner, "--help") for name in COMMANDS for inner in ((), *((one,) for one in _INSIDE.get(name, ())))
]


def call(*words: str) -> tuple[int, str, float, set[str]]:
    """Run a command in a fresh process; return its status, its output, its CPU seconds and the modules it imported."""

    def once() -> tuple[int, str, float, set[str]]:
        done = subprocess.run([sys.executable, "-c", _PROGRAM, *words], check=True, capture_output=True, text=True)
        status, out, seconds, modules = json.loads(done.stdout.splitlines()[-1])
        return status, out, seconds, set(modules)

    result = once()
    for _ in range(2):
        # The first process of a checkout compiles what it imports, and a busy machine stretches CPU time too.
        if result[2] >= _LIMIT_S:
            result = once()
    return result


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_help_is_quick(words: tuple[str, ...]) -> None:
    status, out, seconds, modules = call(*words)
    assert status == 0
    assert "usage" in out.lower()
    assert not _HEAVY & modules
    assert seconds < _LIMIT_S


def test_show_is_quick(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    status, out, seconds, modules = call("show", str(run.path))
    assert status == 0
    assert "advantage" in out
    assert not _HEAVY & modules
    assert seconds < _LIMIT_S
