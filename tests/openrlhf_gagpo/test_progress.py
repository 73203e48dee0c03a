"""The console of a run, also in a file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from openrlhf_gagpo.progress import ProgressDisplay


def test_a_file_gets_plain_lines() -> None:
    stream = io.StringIO()
    with ProgressDisplay(3, Console(file=stream)) as display:
        display.stage("engine started", 21.04)
        with display.timed("environment ready"):
            display.progress("cloning", 3, 9)
        display.note("run [bold]x[/bold]")
    first, second, third = stream.getvalue().splitlines()
    assert first == "engine started            21.0 s"
    assert second.split()[:2] == ["environment", "ready"]
    assert second.endswith(" s")
    assert third == "run [bold]x[/bold]"
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_a_stage_that_failed_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    display = ProgressDisplay(1, Console(file=stream))
    with pytest.raises(ValueError, match="broken"), display.timed("model loaded"):
        raise ValueError("broken")
    assert stream.getvalue() == ""
