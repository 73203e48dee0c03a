"""The watchdog speaks up about a phase that takes far longer than before, once, and ends nothing."""

from __future__ import annotations

import itertools
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.cli.main import main
from openrlhf_gagpo.progress import ProgressDisplay
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.watchdog import Watchdog, own_stacks
from support import tiny_vault


class Seen:
    """An observer that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def phase(self, *call: Any) -> None:
        self.calls.append(call)

    episode = iteration = evaluation = phase


class Spoken:
    """Waits for sentences."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.heard = threading.Event()

    def __call__(self, text: str) -> None:
        self.texts.append(text)
        self.heard.set()


def hang(folder: Path, stacks: Any) -> tuple[str, Seen]:
    """Let a second update hang until the watchdog speaks; return what it says."""
    seen, spoken = Seen(), Spoken()
    with Watchdog(seen, stacks, folder / "stacks", spoken, least=0.01) as watchdog:
        watchdog.phase(1, "update", 0)
        watchdog.iteration(1, {})
        watchdog.phase(2, "update", 0)
        assert spoken.heard.wait(30)
        watchdog.iteration(2, {})
    (text,) = spoken.texts
    return text, seen


def test_a_phase_that_hangs_is_told_of_with_all_stacks(tmp_path: Path) -> None:
    text, seen = hang(tmp_path, own_stacks)
    file = tmp_path / "stacks" / "00002-update.txt"
    assert text.startswith("the update of iteration 2 has taken ")
    assert str(file) in text
    assert "test_watchdog.py" in file.read_text()
    assert seen.calls == [(1, "update", 0), (1, {}), (2, "update", 0), (2, {})]


def test_stacks_that_cannot_be_had_are_no_failure(tmp_path: Path) -> None:
    def broken() -> str:
        raise RuntimeError("the cluster is gone")

    text, _ = hang(tmp_path, broken)
    assert "could not be found out (RuntimeError: the cluster is gone)" in text
    assert not (tmp_path / "stacks").exists()


@pytest.mark.parametrize("names", [["rollout"], ["rollout", "update"]])
def test_first_phases_and_usual_ones_say_nothing(tmp_path: Path, names: list[str]) -> None:
    spoken = Spoken()
    with Watchdog(Seen(), own_stacks, tmp_path, spoken, least=60.0) as watchdog:
        for iteration in range(3):
            for name in names:
                watchdog.phase(iteration, name, 0)
            watchdog.iteration(iteration, {})
    assert spoken.texts == []
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)


def test_a_run_has_one(vault_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second update does not go on before the sentence is there."""
    spoken = Spoken()
    updates = itertools.count(1)

    def update(self: LocalBackend, *args: Any, **named: Any) -> dict[str, float]:
        if next(updates) == 2:
            assert spoken.heard.wait(30)
        return original(self, *args, **named)

    def note(self: ProgressDisplay, text: str) -> None:
        if text.startswith("the update of iteration 2 has taken "):
            spoken(text)

    original = LocalBackend.update
    monkeypatch.setattr(LocalBackend, "update", update)
    monkeypatch.setattr(ProgressDisplay, "note", note)
    monkeypatch.setattr("openrlhf_gagpo.training.watchdog._FACTOR", 0.0)
    monkeypatch.setattr("openrlhf_gagpo.training.watchdog.Watchdog", partial(Watchdog, least=0.01))
    run = tmp_path / "run"
    assert main(tiny_vault.arguments(vault_model, run, report=False, eval__steps=-1)) == 0
    (text,) = spoken.texts
    file = run / "stacks" / "00002-update.txt"
    assert str(file) in text
    assert "test_watchdog.py" in file.read_text()
    assert [row["iteration"] for row in RunFolder.open(run).metrics()] == [1, 2]
