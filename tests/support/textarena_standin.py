"""What our adapter uses of TextArena 0.7.4, with games of its own."""

from __future__ import annotations

import random
import re
from enum import Enum, auto
from typing import Any

__all__ = ["make"]


class ObservationType(Enum):
    PROMPT = auto()
    PLAYER_ACTION = auto()
    GAME_MESSAGE = auto()
    GAME_BOARD = auto()
    GAME_ADMIN = auto()


class SinglePlayerState:
    def __init__(self, num_players: int) -> None:
        assert num_players == 1, "The number of players has to be 1."
        self.error_allowance, self.error_count = 1, 0
        self.turn, self.done, self.rewards = 0, False, None
        self.game_info: dict[int, dict[str, Any]] = {0: {}}
        self.game_state: dict[str, Any] = {}
        self.said: list[tuple[int, str, ObservationType]] = []
        self.invalid = False

    def say(self, text: str, kind: ObservationType) -> None:
        self.said.append((-1, text, kind))

    def set_outcome(self, reward: float, reason: str) -> None:
        self.rewards, self.done = {0: reward}, True
        self.game_info[0]["reason"] = reason

    def set_invalid_move(self, reason: str) -> None:
        if self.error_allowance <= self.error_count:
            return self.set_outcome(-1.0, f"Invalid Move: {reason}")
        self.error_count += 1
        self.invalid = True
        return self.say(f"You attempted an invalid move. Reason: {reason}", ObservationType.GAME_ADMIN)

    def step(self) -> tuple[bool, dict[str, Any]]:
        if not self.invalid:
            self.error_count = 0
            self.turn += 1
        self.invalid = False
        return self.done, {}


class Pile:
    """Take single stones, several with one action, until none is left; every stone taken may let another one fall."""

    def __init__(self, stones: int = 4) -> None:
        print("made for developers")  # noqa: T201  # as real games do
        self.stones = stones

    def reset(self, num_players: int, seed: int | None = None) -> None:
        random.seed(seed)
        self.state = SinglePlayerState(num_players)
        self.state.game_state = {"left": self.stones + random.randrange(3), "names": {"a", "b"}}
        self.state.say("Take [one] stone at a time.", ObservationType.PROMPT)
        self._show()

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        self.state.say(action, ObservationType.PLAYER_ACTION)
        for word in re.findall(r"\[(\w+)\]", action) or [""]:
            if word != "one":
                self.state.set_invalid_move(f"{word!r} is no move.")
                return self.state.step()
            self.state.game_state["left"] -= 1 - (random.random() < 0.2)
            self.state.say("A stone was taken.", ObservationType.GAME_MESSAGE)
            if not self.state.game_state["left"]:
                self.state.set_outcome(1, "All are taken.")
                break
        self._show()
        return self.state.step()

    def get_observation(self) -> tuple[int, list[tuple[int, str, ObservationType]]]:
        said, self.state.said = self.state.said, []
        return 0, said

    def _show(self) -> None:
        self.state.say(f"{self.state.game_state['left']} left", ObservationType.GAME_BOARD)

    def _get_percentage_completion(self) -> float:
        return 1 - self.state.game_state["left"] / 10


class Duel(Pile):
    """A game for two."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        assert num_players == 2, "The number of players has to be 2."


class Riddle(Pile):
    """A game without a board, whose word list is missing."""

    def __init__(self) -> None:
        raise LookupError("Resource 'words' not found.")


_GAMES = {"Pile-v0-raw": Pile, "Duel-v0-raw": Duel, "Riddle-v0-raw": Riddle}


def make(env_id: str, **options: Any) -> Any:
    if env_id not in _GAMES:
        raise ValueError(f"Environment {env_id} not found in registry.")
    return _GAMES[env_id](**options)
