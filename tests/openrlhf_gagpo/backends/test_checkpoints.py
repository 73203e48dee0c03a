"""Checkpoints when a disk is full, a file is damaged, or the process dies in between."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from openrlhf_gagpo.backends.checkpoints import read_checkpoint, write_checkpoint
from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.training.backend import Restored
from openrlhf_gagpo.training.settings import CheckpointSettings


def _write(root: Path, iteration: int, keep: int = 2, *, model: bool = False, **more: float) -> None:
    def write(folder: Path) -> None:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_text("w" * 100)
        (folder / "loop.json").write_text(json.dumps({"iteration": iteration}))

    def write_model(folder: Path) -> None:
        (folder / "weights").write_text("m" * 100)

    settings = CheckpointSettings(root, root / "output", keep, **more)
    write_checkpoint(settings, f"global_step{iteration}", write, write_model if model else None)


def _read(folder: Path) -> dict[str, int]:
    assert (folder / "part" / "weights").read_text() == "w" * 100
    return json.loads((folder / "loop.json").read_text())


def _restored(root: Path, iteration: int) -> Restored:
    return Restored({"iteration": iteration}, root / f"global_step{iteration}")


def _names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_the_newest_are_kept_and_others_are_left_alone(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, _read) is None
    (tmp_path / "global_steps").mkdir()
    for iteration in (1, 2, 10, 9):
        _write(tmp_path, iteration)
    # By number, not by name or by time.
    assert _names(tmp_path) == {"global_step9", "global_step10", "global_steps", "latest"}
    assert read_checkpoint(tmp_path, _read) == _restored(tmp_path, 10)


def test_models_are_kept_as_long_as_their_checkpoints(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        _write(tmp_path, iteration, model=True)
    names = {"global_step2", "global_step2_hf", "global_step3", "global_step3_hf"}
    assert _names(tmp_path) == names | {"latest"}
    assert _names(tmp_path / "global_step3_hf") == {"weights"}
    # A run that writes models alone has nothing to continue from.
    only = CheckpointSettings(tmp_path / "only", tmp_path, 1)
    for iteration in (1, 2):
        write_checkpoint(only, f"global_step{iteration}", None, lambda folder: (folder / "weights").touch())
    assert _names(only.path) == {"global_step2_hf"}
    assert read_checkpoint(only.path, _read) is None


def test_what_takes_too_much_space_goes_but_never_the_newest(tmp_path: Path) -> None:
    for iteration, limit, kept in ((1, 10, {1}), (2, 10, {2}), (3, 400, {2, 3}), (4, 400, {3, 4})):
        _write(tmp_path, iteration, 5, max_bytes=limit)
        assert _names(tmp_path) == {f"global_step{number}" for number in kept} | {"latest"}


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("unexpected pos 64\nmore"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, keep: int, error: Exception) -> None:
    _write(tmp_path, 1, keep)

    def write(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise error

    settings = CheckpointSettings(tmp_path, tmp_path / "output", keep)
    with pytest.raises(RunError, match=r"global_step2 cannot be written: .*; earlier ones are intact") as stop:
        write_checkpoint(settings, "global_step2", write)
    assert "\n" not in str(stop.value)
    assert _names(tmp_path) == {"global_step1", "latest"}
    assert read_checkpoint(tmp_path, _read) == _restored(tmp_path, 1)


def test_what_a_killed_process_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".global_step7.partial").mkdir(parents=True)
    (tmp_path / ".global_step7_hf.partial").mkdir(parents=True)
    _write(tmp_path, 8)
    assert _names(tmp_path) == {"global_step8", "latest"}


def test_all_is_on_disk_before_it_has_its_name_and_older_ones_go_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a machine that loses its power could leave the name without the files."""
    _write(tmp_path, 1, keep=1, model=True)
    calls: list[tuple[str, str]] = []

    def note(owner: Any, name: str, path_of: Callable[..., str | Path]) -> None:
        original = getattr(owner, name)

        def noted(*args: Any, **named: Any) -> None:
            if os.path.exists(path := path_of(*args)):
                calls.append((name, os.path.relpath(path, tmp_path)))
            original(*args, **named)

        monkeypatch.setattr(owner, name, noted)

    note(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    note(os, "replace", lambda source, _: source)
    note(shutil, "rmtree", lambda path: path)
    _write(tmp_path, 2, keep=1, model=True)
    model, whole = ".global_step2_hf.partial", ".global_step2.partial"
    parts = {f"{whole}/{name}" for name in ("files.json", "loop.json", "part", "part/weights")}
    by_call = itertools.groupby(calls, key=lambda call: call[0])
    assert [(name, {path for _, path in group}) for name, group in by_call] == [
        ("fsync", {f"{model}/weights", model}),
        ("replace", {model}),
        ("fsync", {".", *parts, whole}),
        ("replace", {whole}),
        ("fsync", {".", ".latest.tmp"}),
        ("replace", {".latest.tmp"}),
        ("rmtree", {"global_step1", "global_step1_hf"}),
    ]


def _dies(call: int, work: Callable[[], None]) -> bool:
    """Do the work in a process that ends where it would touch the file system for the ``call``-th time, if it does."""
    pid = os.fork()
    if pid == 0:
        calls = itertools.count(1)

        def watch(event: str, _: object) -> None:
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and next(calls) == call:
                os._exit(9)

        status = 1
        try:
            sys.addaudithook(watch)
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_a_process_that_dies_at_any_moment_leaves_a_checkpoint(tmp_path: Path) -> None:
    """Also where only one is kept."""
    for call in itertools.count(1):
        root = tmp_path / str(call)
        _write(root, 1, keep=1, model=True)
        died = _dies(call, lambda root=root: _write(root, 2, keep=1, model=True))
        restored = read_checkpoint(root, _read)
        assert restored is not None
        assert restored.unreadable == {}
        assert restored in (_restored(root, 1), _restored(root, 2))
        assert {"global_step1_hf", "global_step2_hf"} & _names(root)
        _write(root, 3, keep=1, model=True)
        assert _names(root) == {"global_step3", "global_step3_hf", "latest"}
        if not died:
            break
    # Of making the folders, writing, syncing, naming and removing.
    assert call > 20


def _shorten(path: Path) -> None:
    path.write_text("w")


def _change(path: Path) -> None:
    path.write_text(path.read_text().replace("w", "x").replace("{", "["))


@pytest.mark.parametrize("damaged", ["part/weights", "loop.json"])
@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (_shorten, r"OSError: {name} has 1 bytes, not \d+"),
        (Path.unlink, "FileNotFoundError: {name} is missing"),
        (_change, "(AssertionError|JSONDecodeError): .*"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, damage: Callable[[Path], None], cause: str, damaged: str
) -> None:
    for iteration in (1, 2):
        _write(tmp_path, iteration)
    damage(tmp_path / "global_step2" / damaged)
    restored = read_checkpoint(tmp_path, _read)
    assert restored is not None
    assert (restored.state, restored.path) == ({"iteration": 1}, tmp_path / "global_step1")
    assert list(restored.unreadable) == [str(tmp_path / "global_step2")]
    (said,) = restored.unreadable.values()
    assert re.fullmatch(cause.format(name=damaged), said), said
    damage(tmp_path / "global_step1" / damaged)
    with pytest.raises(RunError, match=r"none of the 2 checkpoints in .* can be read, the newest, .*global_step2"):
        read_checkpoint(tmp_path, _read)
    _write(tmp_path, 2)
    assert read_checkpoint(tmp_path, _read) == _restored(tmp_path, 2)


def test_a_damaged_newer_one_does_not_take_the_place_of_the_one_just_written(tmp_path: Path) -> None:
    """A run whose newest checkpoint was damaged goes on from the one before, and may save at other iterations."""
    for iteration in (3, 6):
        _write(tmp_path, iteration)
    _shorten(tmp_path / "global_step6" / "loop.json")
    _write(tmp_path, 4, keep=1)
    assert _names(tmp_path) == {"global_step4", "latest"}


def test_a_checkpoint_of_a_release_without_lists_is_read(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    (tmp_path / "global_step1" / "files.json").unlink()
    assert read_checkpoint(tmp_path, _read) == _restored(tmp_path, 1)
