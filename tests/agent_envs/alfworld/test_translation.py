"""Translations of ALFWorld games are made once per machine, and a cache that fails costs only time.

Only games of domains that are not known are translated, so these games have such a domain.
"""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("alfworld")

from agent_envs.alfworld import AlfworldEnv, translation
from agent_envs.alfworld.game import _game
from agent_envs.alfworld.generator import generate
from agent_envs.alfworld.layout import GAME_FILE, GAMES_FOLDER
from agent_envs.alfworld.translation import translated
from agent_envs.cache import locked
from support.alfworld_games import foreign


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("alfworld")


@pytest.fixture(scope="module")
def task(data):
    (task,) = generate(data, "train", 1, 0)
    path = data / GAMES_FOLDER / task / GAME_FILE
    path.write_text(json.dumps(foreign(json.loads(path.read_text()))))
    return task


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
    translation._warn.cache_clear()
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        results = [translated(*pddl, tmp_path / "file") for _ in range(2)]
        translated(pddl[0], pddl[1] + "\n", tmp_path / "file")
    assert results[0] == results[1]
    assert len(translations) == 3
    assert len(caplog.records) == 1, "one sentence, not one per game"
    assert "cannot be kept" in caplog.text


def test_other_processes_read_what_one_has_translated(data, task, tmp_path):
    code = (
        "import sys; from pathlib import Path; from agent_envs.alfworld import AlfworldEnv, translation\n"
        "made = []; translate = translation._translate\n"
        "translation._translate = lambda *pddl: made.append(1) or translate(*pddl)\n"
        "AlfworldEnv(sys.argv[1], cache_dir=sys.argv[2]).reset(sys.argv[3], 0); print(len(made))"
    )
    command = [sys.executable, "-c", code, str(data), str(tmp_path), task]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(process.communicate(timeout=120)[0].strip() for process in processes) == ["0", "0", "1"]


def test_a_lock_that_is_never_let_go_costs_time_only(pddl, tmp_path, translations, monkeypatch, caplog):
    monkeypatch.setattr(translation, "_LOCK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(translation, "_LOCKS", 1)
    translation._warn.cache_clear()
    with locked(tmp_path / "00.lock"), caplog.at_level(logging.WARNING):
        assert translated(*pddl, tmp_path).sas
    assert len(translations) == 1
    assert "another process holds its lock" in caplog.text
    assert not list(tmp_path.rglob("*.z"))


def test_a_failed_write_leaves_nothing_behind(pddl, tmp_path, translations, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        good = translated(*pddl, tmp_path)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
    assert translated(*pddl, tmp_path) == good
    assert len(translations) == 2


def test_what_a_killed_writer_left_is_cleared_away(pddl, tmp_path, translations):
    translated(*pddl, tmp_path)
    (path,) = tmp_path.rglob("*.z")
    draft = path.with_suffix(".draft12345")
    path.rename(draft)
    translated(*pddl, tmp_path)
    assert path.is_file()
    assert not draft.exists()


def test_another_translator_or_format_is_another_translation(pddl, tmp_path, translations, monkeypatch):
    translated(*pddl, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(translation, "_translator", lambda: "another version")
        translated(*pddl, tmp_path)
    monkeypatch.setattr(translation, "_FORMAT", -1)
    translated(*pddl, tmp_path)
    assert len(translations) == 3


def test_a_user_without_a_home_plays(pddl, translations, monkeypatch):
    def nowhere(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", nowhere)
    assert translated(*pddl).sas
    assert len(translations) == 1
