"""The script that compares ALFWorld with the stock engine: it finds no difference unless there is one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("alfworld")

from agent_envs.alfworld.engine import Engine, View
from support.paths import REPOSITORY


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import alfworld_check

    return alfworld_check


def test_equal_engines_have_no_differences(check, tmp_path: Path) -> None:
    assert check.main(["--games", "2", "--out", str(tmp_path / "counts.json")]) == 0
    found = json.loads((tmp_path / "counts.json").read_text())
    assert (found["games"], found["episodes"], found["differences"]) == (2, 4, 0)
    assert found["games_by_size_and_category"]["small"] == found["games_by_size_and_category"]["medium"] == 1
    assert found["episodes_won"] >= 2
    assert 0 < found["inadmissible_steps"] < found["steps"]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("observation", lambda view: {"observation": view.observation.replace("You", "I")}),
        ("commands", lambda view: {"commands": view.commands[::-1]}),
        ("won", lambda view: {"won": not view.won}),
    ],
)
def test_a_difference_is_counted_and_named(check, monkeypatch, capsys, part, change) -> None:
    step = Engine.step

    def other(engine: Engine, command: str) -> View:
        view = step(engine, command)
        return dataclasses.replace(view, **change(view)) if command.startswith("open") else view

    monkeypatch.setattr(Engine, "step", other)
    assert check.main(["--games", "1"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["differences"] > 0
    assert f"{part}: " in found["first_differences"][0]
    assert "after 'open " in found["first_differences"][0]
