"""ALFWorld: the environment against its contract and against the stock engine, on generated games."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("alfworld")

import textworld.gym
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos

from agent_envs.alfworld import AlfworldEnv
from agent_envs.alfworld.generator import generate
from agent_envs.alfworld.layout import GAME_FILE, GAMES_FOLDER, TRAJ_FILE
from agent_envs.base import EnvError, StepResult, UnknownTask
from agent_envs.testing import check_env
from support.alfworld_games import foreign


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("alfworld")
    for split in AlfworldEnv.splits:
        generate(root, split, count=1 if split != "train" else 3, seed=0)
    return root


@pytest.fixture
def env(data):
    env = AlfworldEnv(data_dir=data, max_steps=12)
    yield env
    env.close()


def play(env, task, actions) -> list[StepResult]:
    env.reset(task, seed=0)
    results = []
    for action in actions:
        results.append(env.step(action))
        if results[-1].terminated or results[-1].truncated:
            break
    return results


def random_actions(env, task, seed, length) -> list[str]:
    """Actions of a random walk, some of them inadmissible."""
    rng = random.Random(seed)
    actions, offered = [], env.reset(task, seed=0).admissible_actions
    while len(actions) < length:
        actions.append(rng.choice([*offered, "help", "open the sky"]))
        result = env.step(actions[-1])
        offered = result.admissible_actions
        if result.terminated or result.truncated:
            break
    return actions


@pytest.mark.parametrize("split", AlfworldEnv.splits)
def test_it_keeps_the_contract_of_environments(data, split):
    check_env(lambda: AlfworldEnv(data_dir=data, max_steps=12), split, sample=2)


def test_tasks_are_game_folders_unique_across_splits(env, data):
    ids = [task for split in env.splits for task in env.tasks(split)]
    assert len(ids) == len(set(ids)) == 5
    assert list(env.tasks("train")) == sorted(env.tasks("train"))
    assert all((data / GAMES_FOLDER / task / GAME_FILE).is_file() for task in ids)
    with pytest.raises(UnknownTask, match="no split 'test'"):
        env.tasks("test")


def test_the_start_gives_task_category_and_actions_without_help(env):
    pick = next(task for task in env.tasks("train") if "/pick_and_place_simple-" in task)
    start = env.reset(pick, seed=0)
    assert start.state_key == start.observation
    assert f"Your task is to: {start.task}." in start.observation
    assert start.task.startswith("put ")
    assert start.category == "Pick"
    assert "look" in start.admissible_actions
    assert "help" not in start.admissible_actions


@pytest.mark.parametrize("number", range(3))
def test_the_expert_wins_and_only_the_last_step_pays(env, number):
    start = env.reset(env.tasks("train")[number], seed=0)
    expert = env.expert()
    offered, results = start.admissible_actions, []
    while not results or not results[-1].terminated:
        action = expert()
        assert action in offered
        results.append(env.step(action))
        offered = results[-1].admissible_actions
    assert [result.reward for result in results] == [0.0] * (len(results) - 1) + [10.0]
    assert results[-1].success
    assert results[-1].score == 1.0
    assert not results[-1].truncated
    with pytest.raises(EnvError, match="reset"):
        expert()


def test_the_expert_replans_after_other_actions(env):
    start = env.reset(env.tasks("train")[0], seed=0)
    expert = env.expert()
    first = expert()
    env.step("dance")
    assert expert() == first
    env.step(next(action for action in start.admissible_actions if action.startswith("go to") and action != first))
    for _ in range(8):
        result = env.step(expert())
        if result.terminated:
            break
    assert result.success


def test_an_episode_is_truncated_at_the_limit_and_then_over(env):
    results = play(env, env.tasks("train")[0], ["inventory"] * 20)
    assert len(results) == env.max_steps
    assert [result.truncated for result in results] == [False] * 11 + [True]
    assert not any(result.terminated or result.success or result.reward for result in results)
    with pytest.raises(EnvError, match="call reset first"):
        env.step("look")


def test_success_on_the_last_allowed_step_is_no_truncation(env, data):
    task = env.tasks("train")[0]
    env.reset(task, seed=0)
    expert = env.expert()
    plan = [expert()]
    while not env.step(plan[-1]).terminated:
        plan.append(expert())
    exact = AlfworldEnv(data_dir=data, max_steps=len(plan))
    last = play(exact, task, plan)[-1]
    exact.close()
    assert last.terminated
    assert not last.truncated


def test_equal_actions_give_equal_results_in_any_instance_and_order(env, data):
    first, second = env.tasks("train")[:2]
    actions = random_actions(env, first, seed=1, length=12)
    expected = play(env, first, actions)
    play(env, second, ["look"])
    assert play(env, first, actions) == expected
    other = AlfworldEnv(data_dir=data, max_steps=12)
    assert play(other, first, actions) == expected
    other.close()


@pytest.mark.parametrize("action", ["", "   ", "\0", "look\nlook", "{look}", "%s", "é" * 3000, "open door 7"])
def test_an_unreadable_action_changes_nothing_but_the_step_count(env, action):
    task = env.tasks("train")[0]
    offered = env.reset(task, seed=0).admissible_actions
    result = env.step(action)
    assert result.observation == "Nothing happens."
    assert not result.admissible
    assert result.admissible_actions == offered


def test_admissible_means_offered_before_the_action(env):
    start = env.reset(env.tasks("train")[0], seed=0)
    move = next(action for action in start.admissible_actions if action.startswith("go to"))
    assert env.step(f"  {move.upper()} ").admissible
    assert not env.step(move).admissible
    assert not env.step("help").admissible


@pytest.mark.parametrize("seed", range(3))
def test_random_play_equals_the_stock_environment(env, seed, data):
    task = env.tasks("train")[seed]
    infos = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])
    name = textworld.gym.register_games(
        [str(data / GAMES_FOLDER / task / GAME_FILE)],
        infos,
        batch_size=1,
        asynchronous=False,
        max_episode_steps=50,
        wrappers=[AlfredDemangler, AlfredInfos],
    )
    stock = textworld.gym.make(name)
    observations, stock_infos = stock.reset()
    start = env.reset(task, seed=0)
    assert start.observation == observations[0]
    actions = random_actions(env, task, seed, length=12)
    for action, ours in zip(actions, play(env, task, actions), strict=True):
        observations, _, _, stock_infos = stock.step([action])
        assert ours.observation == observations[0]
        assert [*ours.admissible_actions, "help"] == sorted(stock_infos["admissible_commands"][0], key="help".__eq__)
        assert ours.success == stock_infos["won"][0]
    stock.close()


def test_step_before_reset_and_unknown_games_are_named(env):
    with pytest.raises(EnvError, match="call reset first"):
        env.step("look")
    for task in ("", "train", "nowhere/pick_and_place_simple-a/b", "train/../train", env.tasks("train")[0] + "x"):
        with pytest.raises(UnknownTask, match="has no game"):
            env.reset(task, seed=0)


def test_a_broken_game_names_its_file_and_spares_the_instance(env, data, tmp_path):
    good = env.tasks("train")[0]
    broken = tmp_path / GAMES_FOLDER / good
    broken.mkdir(parents=True)
    other = AlfworldEnv(data_dir=tmp_path)
    for content, message in (("{", "no valid JSON"), ("[]", "no JSON object"), ("{}", "lacks pddl_domain")):
        (broken / GAME_FILE).write_text(content)
        with pytest.raises(EnvError, match=message):
            other.reset(good, seed=0)
    text = (data / GAMES_FOLDER / good / GAME_FILE).read_text()
    (broken / GAME_FILE).write_text(text.replace("(:init", "(:nonsense"))
    with pytest.raises(EnvError, match="engine failed to load"):
        other.reset(good, seed=0)
    (broken / GAME_FILE).write_text(text)
    assert other.reset(good, seed=0) == env.reset(good, seed=0)
    other.close()


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        pytest.param(r"\(atLocation[^)]*\)", "", id="no agent's place"),
        pytest.param(r"\(pickupable[^)]*\)", "", id="nothing to pick up"),
    ],
)
@pytest.mark.parametrize("path", ["by the rules", "by the native engine"])
def test_a_game_in_which_no_action_is_possible_is_an_error(env, data, tmp_path, path, pattern, replacement):
    task = next(task for task in env.tasks("train") if "/pick_" in task)
    content = json.loads((data / GAMES_FOLDER / task / GAME_FILE).read_text())
    game = content if path == "by the rules" else foreign(content)
    folder = tmp_path / GAMES_FOLDER / task
    folder.mkdir(parents=True)
    stuck = AlfworldEnv(data_dir=tmp_path)
    problem = re.sub(pattern, replacement, game["pddl_problem"])
    (folder / GAME_FILE).write_text(json.dumps({**game, "pddl_problem": problem}))
    with pytest.raises(EnvError, match=rf"no action is possible in the ALFWorld game {task}.*generate or download"):
        stuck.reset(task, seed=0)
    with pytest.raises(EnvError, match="call reset first"):
        stuck.step("look")
    (folder / GAME_FILE).write_text(json.dumps(game))
    stuck.close()
    assert stuck.reset(task, seed=0) == env.reset(task, seed=0)
    stuck.close()


_HOMELESS = """
import logging, os, sys
from agent_envs.alfworld import AlfworldEnv
logging.basicConfig(format="%(message)s")
before = dict(os.environ)
env = AlfworldEnv(sys.argv[1])
for task in env.tasks("train"):
    env.reset(task, 0)
    while not env.step(env.expert()()).terminated:
        pass
env.close()
assert dict(os.environ) == before
"""


@pytest.mark.parametrize("home", ["a file", "a folder that cannot be made"])
@pytest.mark.parametrize("domain", ["known", "foreign"])
def test_a_home_that_cannot_be_written_does_not_matter(data, tmp_path, home, domain):
    for path in data.rglob(f"train/**/{GAME_FILE}"):
        game = json.loads(path.read_text())
        copy = tmp_path / path.relative_to(data)
        copy.parent.mkdir(parents=True)
        copy.write_text(json.dumps(foreign(game) if domain == "foreign" else game))
        (copy.parent / TRAJ_FILE).write_text("{}")
    (tmp_path / "file").touch()
    nowhere = {"a file": tmp_path / "file", "a folder that cannot be made": Path("/proc/nobody")}[home]
    surroundings = {key: value for key, value in os.environ.items() if key not in ("ALFWORLD_DATA", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", _HOMELESS, str(tmp_path)],
        env={**surroundings, "HOME": str(nowhere)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    # Only translations are kept there. It is said once, for three games.
    assert done.stderr.count("cannot be kept") == len(done.stderr.splitlines()) == (domain == "foreign")


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(EnvError, match=r"gagpo env generate alfworld.*alfworld-download.*ALFWORLD_DATA"):
        AlfworldEnv(data_dir=tmp_path)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(EnvError, match="elsewhere"):
        AlfworldEnv()
    (tmp_path / GAMES_FOLDER).mkdir()
    with pytest.raises(EnvError, match="no games of split 'train'"):
        AlfworldEnv(data_dir=tmp_path).tasks("train")
    with pytest.raises(EnvError, match="max_steps"):
        AlfworldEnv(data_dir=tmp_path, max_steps=0)


def test_games_the_engine_cannot_play_are_not_listed(tmp_path):
    folder = tmp_path / GAMES_FOLDER / "train"
    for goal, solvable in (
        ("pick_and_place_simple-Mug-None-Shelf-1", "true"),
        ("pick_and_place_simple-Mug-None-Shelf-2", "false"),
        ("pick_and_place_simple-AppleSliced-None-Shelf-1", "true"),
        ("pick_and_place_with_movable_recep-Pen-Mug-Shelf-1", "true"),
    ):
        (folder / goal / "trial").mkdir(parents=True)
        (folder / goal / "trial" / GAME_FILE).write_text(f'{{"grammar": "", "solvable": {solvable}}}')
        (folder / goal / "trial" / "traj_data.json").write_text("{}")
    assert AlfworldEnv(data_dir=tmp_path).tasks("train") == ("train/pick_and_place_simple-Mug-None-Shelf-1/trial",)


def test_closing_twice_and_playing_on_afterwards(env):
    env.reset(env.tasks("train")[0], seed=0)
    env.close()
    env.close()
    with pytest.raises(EnvError, match="call reset first"):
        env.step("look")


_QUIET = """
import sys
from agent_envs.alfworld import AlfworldEnv
assert "textworld" not in sys.modules
before = list(sys.argv)
for _ in range(3):
    env = AlfworldEnv(sys.argv[1])
    env.reset(env.tasks("train")[0], 0)
    env.step(env.expert()())
    env.close()
assert sys.argv == before, sys.argv
"""


def test_a_process_keeps_its_arguments_prints_nothing_and_ends_cleanly(data):
    done = subprocess.run([sys.executable, "-c", _QUIET, str(data)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
