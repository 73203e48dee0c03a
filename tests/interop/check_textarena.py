"""Plays TextArena's games through our adapter; `make test-interop` runs it where TextArena is installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import agent_envs
from agent_envs.adapters import from_textarena
from agent_envs.testing import check_env

FEW = {"train": 5, "valid": 2}
GAMES = ("TowerOfHanoi-v0", "Mastermind-v0", "FrozenLake-v0-random", "2048-v0-easy", "Minesweeper-v0-small")


def make(game: str, **options: object) -> agent_envs.TextEnv:
    cls = from_textarena(game, tasks=FEW, **options)
    cls.name = game
    return cls()


def check_contract() -> None:
    """Games with boards, with messages only, and with chance after the start."""
    for game in GAMES:
        check_env(lambda game=game: make(game), "train", sample=2)


def check_a_solution() -> None:
    """A tower that is moved earns the game's reward; states that come again have one key."""
    env = make("TowerOfHanoi-v0")
    start = env.reset("train-0", 0)
    assert "Tower of Hanoi" in start.task
    there = env.step("[A C]")
    assert "Current Board" in there.observation
    assert env.step("[C A]").state_key == start.state_key != there.state_key
    wrong = env.step("[B A]")
    assert (wrong.admissible, wrong.state_key) == (False, start.state_key)
    assert "invalid" in wrong.observation
    assert "Current Board" in wrong.observation
    # The first of these moves would be possible, but the second is not.
    half = env.step("[A B] [B C] [B C]")
    assert half.state_key == start.state_key
    assert "You moved" not in half.observation
    for move in ("[A C]", "[A B]", "[C B]", "[A C]", "[B A]", "[B C]"):
        assert env.step(move).reward == 0.0
    assert env.final_score() == 2 / 3
    last = env.step("[A C]")
    assert (last.terminated, last.success, last.reward, last.score) == (True, True, 1.0, 1.0)
    assert "solved" in last.observation


def check_chance() -> None:
    """Tiles fall by task and seed, whatever other instances do in between."""

    def boards(seed: int, disturb: bool = False) -> list[str]:
        env, other = make("2048-v0"), make("2048-v0")
        shown = [env.reset("train-3", seed).observation]
        for _ in range(3):
            for move in ("[Up]", "[Left]"):
                if disturb:
                    other.reset("train-1", 9)
                shown.append(env.step(move).observation)
        return shown

    assert boards(1) == boards(1, disturb=True)
    assert boards(1)[0] == boards(2)[0]
    assert boards(1) != boards(2)


def refusal(game: str) -> str:
    try:
        make(game).reset("train-0", 0)
    except agent_envs.EnvError as error:
        return str(error)
    raise AssertionError(f"{game} was started")


def check_refusals() -> None:
    """What cannot be played is said in one sentence."""
    for game, said in {
        "TicTacToe-v0": "with one player",
        "NoSuchGame-v0": "not found",
        "TwentyQuestions-v0": "API key",
    }.items():
        assert said in refusal(game)


if __name__ == "__main__":
    check_contract()
    check_a_solution()
    check_chance()
    check_refusals()
    sys.stdout.write("textarena: 4 passed, 0 failed\n")
