"""ALFWorld: generated games are solvable, reproducible, resumable and split as promised."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("alfworld")

from alfworld.gen import constants

from agent_envs.alfworld import AlfworldEnv
from agent_envs.alfworld import generator as generator_module
from agent_envs.alfworld.generator import generate
from agent_envs.alfworld.layout import (
    CATEGORIES,
    GAME_FILE,
    GAMES_FOLDER,
    OFFICIAL_COUNTS,
    SPLITS,
    TRAJ_FILE,
)
from agent_envs.alfworld.rooms import LAMP_STANDS, ROOMS, SIZES, TASKS, furniture_of, scenes_of
from agent_envs.base import EnvError, UnknownTask


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("task_type", TASKS)
def test_every_task_type_is_winnable_along_its_walkthrough(tmp_path, task_type):
    (task,) = generate(tmp_path, "train", count=1, seed=3, task_types=(task_type,))
    folder = tmp_path / GAMES_FOLDER / task
    game = json.loads((folder / GAME_FILE).read_text())
    assert game["solvable"] is True
    assert json.loads((folder / TRAJ_FILE).read_text())["task_type"] == task_type

    env = AlfworldEnv(data_dir=tmp_path)
    start = env.reset(task, seed=0)
    assert start.category == CATEGORIES[task_type]
    assert len([action for action in start.admissible_actions if action.startswith("go to")]) == 5
    results = [env.step(action) for action in game["walkthrough"]]
    env.close()
    assert all(result.admissible for result in results)
    assert [result.success for result in results] == [False] * (len(results) - 1) + [True]


def test_equal_arguments_write_equal_bytes_and_another_seed_writes_others(tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        generate(tmp_path / name, "valid_unseen", count=2, seed=seed)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not set(contents(tmp_path / "one")) & set(contents(tmp_path / "three"))


def test_a_second_run_keeps_what_is_complete_and_repairs_the_rest(tmp_path):
    tasks = generate(tmp_path, "train", count=2, seed=0)
    before = contents(tmp_path)
    kept, lost = (tmp_path / GAMES_FOLDER / task / GAME_FILE for task in tasks)
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    assert generate(tmp_path, "train", count=3, seed=0)[:2] == tasks
    assert kept.stat().st_mtime_ns == stamp
    assert before.items() <= contents(tmp_path).items()
    assert list(AlfworldEnv(data_dir=tmp_path).tasks("train")) == sorted(generate(tmp_path, "train", count=3, seed=0))


def test_workers_write_the_same_games_and_each_is_reported_in_order(tmp_path):
    kinds = ("pick_two_obj_and_place", "look_at_obj_in_light")
    reported: list[str] = []
    alone = generate(tmp_path / "one", "train", 3, 7, "medium", kinds, on_game=reported.append)
    assert reported == alone
    assert generate(tmp_path / "two", "train", 3, 7, "medium", kinds, workers=2) == alone
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with pytest.raises(EnvError, match="at least 1 worker"):
        generate(tmp_path, "train", 1, 0, workers=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task_type", TASKS)
def test_splits_share_no_goal_and_unseen_rooms_look_like_no_other(task_type, size):
    goals = {
        split: {goal.folder for goals in generator_module._goals(split, size, task_type).values() for goal in goals}
        for split in SPLITS
    }
    assert all(goals.values())
    assert sum(map(len, goals.values())) == len(set().union(*goals.values()))
    rooms = furniture_of(size)
    unseen, seen = ({(room, rooms[scene]) for room, scene in scenes_of(split)} for split in ("valid_unseen", "train"))
    assert len(unseen) == 24
    assert len(seen) == 96
    assert not unseen & seen


def test_a_small_house_has_one_piece_of_each_kind():
    assert all(len(set(furniture)) == len(furniture) == 5 for furniture in furniture_of("small").values())


def test_large_houses_have_one_of_what_houses_have_one_of():
    for furniture in furniture_of("real").values():
        assert len(furniture) == SIZES["real"].receptacles == 24
        assert all(furniture.count(kind) <= 1 for kind in ("Fridge", "Microwave", "Bed", "Toilet", "GarbageCan"))


def test_the_official_counts_add_up():
    assert [sum(counts.values()) for counts in OFFICIAL_COUNTS.values()] == [3553, 140, 134]


def test_the_tables_name_what_alfworld_knows():
    for room in ROOMS.values():
        assert set(room.furniture) <= constants.VAL_RECEPTACLE_OBJECTS.keys()
        assert set(room.objects) <= constants.OBJECTS_SET - constants.VAL_RECEPTACLE_OBJECTS.keys() | set(
            constants.MOVABLE_RECEPTACLES
        )
    assert set(LAMP_STANDS) <= constants.VAL_RECEPTACLE_OBJECTS.keys()
    assert TASKS.keys() == CATEGORIES.keys()
    assert "small" in SIZES


def test_arguments_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(UnknownTask, match="no split 'test'"):
        generate(tmp_path, "test", 1, 0)
    with pytest.raises(UnknownTask, match="size 'huge'"):
        generate(tmp_path, "train", 1, 0, size="huge")
    with pytest.raises(UnknownTask, match="task type juggle"):
        generate(tmp_path, "train", 1, 0, task_types=("juggle",))
    with pytest.raises(UnknownTask, match="task type given"):
        generate(tmp_path, "train", 1, 0, task_types=())
    with pytest.raises(EnvError, match="negative"):
        generate(tmp_path, "train", -1, 0)
    assert generate(tmp_path, "train", 0, 0) == []


def test_a_game_without_a_plan_is_drawn_again_and_given_up_in_the_end(tmp_path, monkeypatch):
    real, asked = generator_module.Engine.plan, []

    def hopeless_at_first(engine):
        asked.append(engine)
        return [] if len(asked) == 1 else real(engine)

    monkeypatch.setattr(generator_module.Engine, "plan", hopeless_at_first)
    (task,) = generate(tmp_path, "train", 1, 0)
    assert len(asked) == 2
    assert (tmp_path / GAMES_FOLDER / task / GAME_FILE).is_file()

    monkeypatch.setattr(generator_module, "_ATTEMPTS", 2)
    monkeypatch.setattr(generator_module.Engine, "plan", lambda engine: [])
    with pytest.raises(EnvError, match="choose another seed"):
        generate(tmp_path, "train", 1, 9)
