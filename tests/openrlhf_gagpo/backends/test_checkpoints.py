"""Checkpoints when a disk is full, a file is damaged, or the process dies in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openrlhf_gagpo.backends.checkpoints import read_checkpoint, write_checkpoint
from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.training.backend import Restored


def _write(root: Path, iteration: int, keep: int = 2) -> None:
    def write(folder: Path) -> None:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_text("w" * 100)
        (folder / "loop.json").write_text(json.dumps({"iteration": iteration}))

    write_checkpoint(root, f"global_step{iteration}", write, keep)


def _read(folder: Path) -> dict[str, int]:
    assert len((folder / "part" / "weights").read_text()) == 100
    return json.loads((folder / "loop.json").read_text())


def _names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_the_newest_are_kept_and_others_are_left_alone(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, _read) is None
    (tmp_path / "global_steps").mkdir()
    for iteration in (1, 2, 10, 9):
        _write(tmp_path, iteration)
    # By number, not by name or by time.
    assert _names(tmp_path) == {"global_step9", "global_step10", "global_steps", "latest"}
    assert read_checkpoint(tmp_path, _read) == Restored({"iteration": 10})


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64\nmore")])
def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, keep: int, error: Exception) -> None:
    _write(tmp_path, 1, keep)

    def write(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise error

    with pytest.raises(RunError, match=r"global_step2 cannot be written: .*; earlier ones are intact"):
        write_checkpoint(tmp_path, "global_step2", write, keep)
    assert _names(tmp_path) == {"global_step1", "latest"}
    assert read_checkpoint(tmp_path, _read) == Restored({"iteration": 1})


def test_what_a_killed_process_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".global_step7.partial").mkdir(parents=True)
    _write(tmp_path, 8)
    assert _names(tmp_path) == {"global_step8", "latest"}


@pytest.mark.parametrize("damage", ["part/weights", "loop.json"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    for iteration in (1, 2):
        _write(tmp_path, iteration)
    (tmp_path / "global_step2" / damage).write_text("w")
    restored = read_checkpoint(tmp_path, _read)
    assert restored is not None
    assert restored.state == {"iteration": 1}
    assert list(restored.unreadable) == [str(tmp_path / "global_step2")]
    (tmp_path / "global_step1" / damage).unlink()
    with pytest.raises(RunError, match=r"none of the 2 checkpoints in .* can be read, the newest, .*global_step2"):
        read_checkpoint(tmp_path, _read)
    _write(tmp_path, 2)
    assert read_checkpoint(tmp_path, _read) == Restored({"iteration": 2})
