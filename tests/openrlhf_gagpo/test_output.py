"""What libraries write goes to a file; what the command says goes to the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import logging, os, subprocess, sys
from pathlib import Path
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.output import LibraryOutput

path, ending = Path(sys.argv[1]), sys.argv[2]
handler = logging.StreamHandler(sys.stderr)
with LibraryOutput(apart=ending != "all") as output:
    print("python early")
    os.write(1, b"compiled\\n")
    if ending == "expected":
        raise ConfigError("wrong flag")
    if ending == "defect":
        raise ValueError("defect")
    if ending != "silent":
        output.keep(path)
    subprocess.run([sys.executable, "-c", "print('child')"])
    logging.getLogger().addHandler(handler)
    logging.warning("logged")
    print("stage 1.0 s", file=output.terminal, flush=True)
print("after")
logging.warning("late")
"""


def run(path: Path, ending: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _PROGRAM, str(path), ending], capture_output=True, text=True)


def test_only_stages_reach_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "libraries.log"
    done = run(log, "kept")
    assert done.stdout == "stage 1.0 s\nafter\n"
    assert done.stderr == "late\n"
    assert sorted(log.read_text().split("\n")) == ["", "child", "compiled", "logged", "python early"]


def test_a_continued_run_appends(tmp_path: Path) -> None:
    log = tmp_path / "libraries.log"
    log.write_text("before\n")
    run(log, "kept")
    assert log.read_text().startswith("before\n")
    assert "child\n" in log.read_text()


def test_an_unexpected_error_shows_what_was_written_before_there_was_a_file(tmp_path: Path) -> None:
    done = run(tmp_path / "x", "defect")
    assert done.stdout == ""
    assert done.stderr.index("compiled") < done.stderr.index("ValueError: defect")
    assert not (tmp_path / "x").exists()


def test_an_expected_error_stands_alone(tmp_path: Path) -> None:
    done = run(tmp_path / "x", "expected")
    assert "compiled" not in done.stdout + done.stderr
    assert "wrong flag" in done.stderr


def test_everything_can_be_shown(tmp_path: Path) -> None:
    done = run(tmp_path / "x", "all")
    assert {"python early", "compiled", "child", "stage 1.0 s"} <= set(done.stdout.splitlines())
    assert "logged" in done.stderr
    assert not (tmp_path / "x").exists()
