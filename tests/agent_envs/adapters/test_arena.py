"""TextArena's games as ours, on a stand-in; `make test-interop` plays those of the real package."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

import agent_envs
from agent_envs import EnvError, TextEnv
from agent_envs.adapters import from_textarena
from agent_envs.testing import check_env
from support import textarena_standin


@pytest.fixture(autouse=True)
def _textarena(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textarena", textarena_standin)


def game(name: str = "Pile-v0", **options: Any) -> TextEnv:
    cls = from_textarena(name, tasks={"train": 5, "valid": 2}, **options)
    cls.name = name
    return cls()


def test_the_contract_is_kept() -> None:
    for split in ("train", "valid"):
        check_env(game, split, sample=2)


def test_an_episode_shows_the_games_own_messages() -> None:
    env = game(stones=2)
    start = env.reset("train-0", 0)
    assert start.task == "Take [one] stone at a time."
    assert start.observation.endswith(" left")
    result = env.step("I take [one] stone")
    assert "[one]" not in result.observation
    while not result.terminated:
        assert (result.success, result.reward, result.score) == (False, 0.0, 0.0)
        result = env.step("[one]")
    assert result.observation.endswith("\n\nAll are taken.")
    assert (result.success, result.reward, result.score) == (True, 1.0, 1.0)


def test_an_invalid_move_changes_nothing_and_shows_the_board() -> None:
    env, other = game(), game()
    start = env.reset("train-1", 0)
    other.reset("train-1", 0)
    for _ in range(3):
        # The game takes two stones before it comes to the part that is wrong.
        wrong = env.step("[one] [one] [two]")
        assert (wrong.admissible, wrong.terminated) == (False, False)
        assert wrong.state_key == start.state_key
        assert wrong.observation == f"You attempted an invalid move. Reason: 'two' is no move.\n\n{start.observation}"
    assert env.step("[one]") == other.step("[one]")


def test_state_keys_are_those_of_the_game_without_its_clock() -> None:
    env = game()
    start = env.reset("train-0", 0)
    keys = {start.observation: start.state_key}
    for seed in range(6):
        env.reset("train-0", seed)
        for _ in range(3):
            result = env.step("[one]")
            board = result.observation.split("\n\n")[-1]
            assert keys.setdefault(board, result.state_key) == result.state_key
    assert len(set(keys.values())) == len(keys)
    mine = game(state_key=lambda inner: f"{inner.state.game_state['left']} stones")
    assert mine.reset("train-0", 0).state_key == f"{start.observation.split()[0]} stones"


def test_chance_is_the_episodes_own() -> None:
    def observed(disturb: bool) -> list[str]:
        env, other = game(), game()
        seen = [env.reset("train-2", 3).observation]
        for _ in range(4):
            if disturb:
                other.reset("train-0", 0)
                random.seed(1)
            seen.append(env.step("[one]").observation)
        return seen

    assert observed(False) == observed(True)
    random.seed(5)
    expected = random.random()
    random.seed(5)
    game().reset("train-0", 0)
    assert random.random() == expected


def test_an_episode_that_is_cut_off_has_the_score_that_was_reached() -> None:
    cls = from_textarena("Pile-v0", tasks={"train": 1}, max_steps=2)
    cls.name = "pile"
    env = cls()
    env.reset("train-0", 0)
    env.step("[one]")
    last = env.step("[one]")
    assert last.truncated
    assert last.score == env.final_score() > 0


def test_what_games_print_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    game().reset("train-0", 0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Duel-v0", "cannot play Duel-v0 with one player: The number of players has to be 2"),
        ("Riddle-v0", "needs word lists of NLTK"),
        ("Chess-v9", "cannot make Chess-v9: Environment Chess-v9-raw not found"),
    ],
)
def test_what_cannot_be_played_is_said(name: str, said: str) -> None:
    with pytest.raises(EnvError, match=said):
        game(name).reset("train-0", 0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    agent_envs.register("pile")(from_textarena("Pile-v0"))
    monkeypatch.delitem(sys.modules, "textarena")
    with pytest.raises(agent_envs.RegistryError, match=r"needs textarena: run pip install -e '\.\[textarena\]'"):
        agent_envs.make("pile")
