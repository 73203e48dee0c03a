"""Translations of ALFWorld games are made once per machine, and a cache that fails costs only time."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("alfworld")

from agent_envs.alfworld import AlfworldEnv, translation
from agent_envs.alfworld.game import _game
from agent_envs.alfworld.generator import generate
from agent_envs.alfworld.layout import GAME_FILE, GAMES_FOLDER
from agent_envs.alfworld.translation import translated


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("alfworld")


@pytest.fixture(scope="module")
def task(data):
    return generate(data, "train", 1, 0)[0]


@pytest.fixture(scope="module")
def pddl(data, task):
    game = json.loads((data / GAMES_FOLDER / task / GAME_FILE).read_text())
    return game["pddl_domain"], game["pddl_problem"]


@pytest.fixture
def translations(monkeypatch):
    """The problems that were translated, and not read from disk, since the test began."""
    made = []
    translate = translation._translate

    def counted(domain, problem):
        made.append(problem)
        return translate(domain, problem)

    monkeypatch.setattr(translation, "_translate", counted)
    return made


def episode(env, task):
    start = env.reset(task, 0)
    expert = env.expert()
    shown = [start]
    while not getattr(shown[-1], "terminated", False):
        shown.append(env.step(expert()))
    return shown


def test_a_new_process_plays_from_the_translation_on_disk(data, task, tmp_path, translations):
    def play():
        _game.cache_clear()
        env = AlfworldEnv(data, cache_dir=tmp_path)
        try:
            return episode(env, task)
        finally:
            env.close()

    fresh = play()
    assert len(translations) == 1
    assert play() == fresh
    assert len(translations) == 1


def test_what_is_read_equals_what_was_translated(pddl, tmp_path):
    assert translated(*pddl, tmp_path) == translated(*pddl, tmp_path) == translation._translate(*pddl)


def test_other_content_is_another_translation(pddl, tmp_path, translations):
    domain, problem = pddl
    translated(domain, problem, tmp_path)
    translated(domain, problem + "\n", tmp_path)
    assert len(translations) == 2


def test_members_of_a_group_translate_a_game_once(pddl, tmp_path, translations):
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: translated(*pddl, tmp_path), range(8)))
    assert len(translations) == 1
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("content", [b"", b"no zlib", None])
def test_a_damaged_file_is_made_anew(pddl, tmp_path, translations, content):
    good = translated(*pddl, tmp_path)
    (path,) = tmp_path.rglob("*.z")
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    assert translated(*pddl, tmp_path) == good
    assert translated(*pddl, tmp_path) == good
    assert len(translations) == 2


def test_a_folder_that_cannot_be_used_costs_time_only(pddl, tmp_path, translations, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        results = [translated(*pddl, tmp_path / "file") for _ in range(2)]
    assert results[0] == results[1]
    assert len(translations) == 2
    assert len(caplog.records) == 1, "one sentence, not one per game"
    assert "cannot be used" in caplog.text
