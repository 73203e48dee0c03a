"""What a run notes of its ALFWorld data."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("alfworld")

from agent_envs.alfworld import AlfworldEnv
from agent_envs.alfworld.generator import VERSION, generate
from agent_envs.alfworld.layout import GAME_FILE, GAMES_FOLDER, TRAJ_FILE, list_games


def written(root, *tasks) -> None:
    for task in tasks:
        folder = root / GAMES_FOLDER / task
        folder.mkdir(parents=True)
        (folder / GAME_FILE).write_text('{"solvable": true}')
        (folder / TRAJ_FILE).write_text("{}")


OFFICIAL = "train/pick_and_place_simple-Mug-None-Shelf-1/trial_T20190907_174127_043461"
OWN = "valid_seen/pick_and_place_simple-Mug-None-Shelf-2/mine"


def test_generated_games_are_recorded_with_how_they_were_made(tmp_path):
    generate(tmp_path, "train", 2, seed=3)
    generate(tmp_path, "valid_unseen", 1, seed=-4, size="medium")
    record = dict(AlfworldEnv(tmp_path).record)
    assert record == {
        "data": "generated",
        "games": {"train": 2, "valid_unseen": 1},
        "tasks": record["tasks"],
        "generator": [
            {"version": VERSION, "size": "medium", "seed": -4},
            {"version": VERSION, "size": "small", "seed": 3},
        ],
    }
    assert json.loads(json.dumps(record)) == record


def test_equal_tasks_have_equal_hashes_and_one_more_game_another(tmp_path):
    generate(tmp_path / "one", "train", 2, seed=3)
    generate(tmp_path / "two", "train", 2, seed=3)
    one, two = (AlfworldEnv(tmp_path / name).record["tasks"] for name in ("one", "two"))
    assert one == two
    assert len(str(one)) == 12
    generate(tmp_path / "two", "train", 3, seed=3)
    assert AlfworldEnv(tmp_path / "two").record["tasks"] != one


def test_official_and_other_games_are_told_apart(tmp_path):
    for name, tasks, kind, games in (
        ("official", [OFFICIAL], "official", {"train": 1}),
        ("other", [OWN], "other", {"valid_seen": 1}),
        ("mixed", [OFFICIAL, OWN], "mixed", {"train": 1, "valid_seen": 1}),
    ):
        written(tmp_path / name, *tasks)
        record = AlfworldEnv(tmp_path / name).record
        assert (record["data"], record["games"]) == (kind, games)
        assert "generator" not in record


def test_games_of_a_release_that_wrote_no_version_have_none(tmp_path):
    written(tmp_path, "train/pick_and_place_simple-Mug-None-Shelf-1/trial_small_s7_00000")
    assert AlfworldEnv(tmp_path).record["generator"] == [{"version": None, "size": "small", "seed": 7}]


def test_nothing_is_listed_before_the_record_is_read(tmp_path, monkeypatch):
    written(tmp_path, OFFICIAL)
    listed = []
    monkeypatch.setattr(
        "agent_envs.alfworld.env.list_games", lambda root, split: listed.append(split) or list_games(root, split)
    )
    env = AlfworldEnv(tmp_path)
    assert listed == []
    assert env.record["games"] == {"train": 1}
    assert len(listed) == 3
