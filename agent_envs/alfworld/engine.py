"""Plays ALFWorld games: the stock engine's results without its repeated work.

Games of ALFRED's domain go by its rules, which are written out; for any other domain TextWorld's native PDDL engine
decides which operators apply, carries them out and checks the goal. The native engine also plans. Texts come from the
game's grammar. Observations, commands and outcomes equal those of ``textworld.envs.pddl.PddlEnv`` with ALFWorld's
``AlfredDemangler`` (``benchmarks/alfworld_engine.py`` compares them).

Importing this module imports ``textworld`` and ``alfworld``. An engine holds a native library; it is used from one
thread (threads break the library), while several engines may take turns in one process.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fast_downward

from agent_envs.alfworld.game import Game, Operator, shared_game
from agent_envs.alfworld.play import NativePlay, Play, WrittenPlay
from agent_envs.alfworld.upstream import ALFRED_TWL2_PATH
from agent_envs.alfworld.wording import parse_grammar
from agent_envs.base import EnvError

__all__ = ["Engine", "View", "warm_up"]

_UNKNOWN_COMMAND = "Nothing happens."
_HERE = ("atlocation(a:agent, l:location) & receptacleatlocation(r:receptacle, l:location)", ("r", "receptacle"))
_HELD = ("holds(a:agent, o:object)", ("o", "object"))

_idle_libraries: list[ctypes.CDLL] = []
"""Libraries of closed engines. They cannot be unloaded (their exit handlers would crash), so they are used again."""


@dataclass(frozen=True)
class View:
    """What the engine shows of a state."""

    observation: str
    commands: tuple[str, ...]
    """Commands that are possible now, sorted, without ``help``."""
    won: bool


def warm_up() -> None:
    """Parse the grammar that ALFWorld ships, so that processes forked from this one have it."""
    with open(ALFRED_TWL2_PATH, encoding="utf-8") as file:
        parse_grammar(file.read())


class Engine:
    """One game at a time: ``load`` it, ``reset`` it as often as needed, ``step`` through it."""

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None
        self._game: Game | None = None
        self._play: Play | None = None
        self._offered: dict[str, Operator] = {}
        """Command -> the first operator with that text."""
        self._view: View | None = None

    def load(self, content: Mapping[str, Any], cache_dir: Path | None = None) -> None:
        """Take the parsed content of a ``game.tw-pddl`` file; if it needs a translation, ``cache_dir`` keeps it.

        Raises ``EnvError`` when the engine cannot read it.
        """
        self._game = self._play = self._view = None
        with _guarded("load the game"):
            self._game = shared_game(content, cache_dir)

    def reset(self) -> View:
        """Start the loaded game from the beginning."""
        game = self._loaded()
        self._play = self._view = None
        with _guarded("reset the game"):
            self._play = WrittenPlay(game, game.known) if game.known else NativePlay(game, self._native())
            return self._look(self._play, game.intro)

    def step(self, command: str) -> View:
        """Carry out ``command``; one the engine does not know leaves the state as it is ("Nothing happens.")."""
        game, play, view = self._started()
        chosen = self._offered.get(command.strip())
        if chosen is None:
            self._view = View(_UNKNOWN_COMMAND, view.commands, view.won)
            return self._view
        with _guarded("take the step"):
            play.carry_out(chosen)
            return self._look(play, game.wording.derive(chosen.feedback, play.facts, chosen.binding))

    @property
    def by_native_engine(self) -> bool:
        """Whether the native engine plays the game, since its rules are not written out."""
        return self._loaded().known is None

    def place(self) -> str:
        """Where the agent is and what it carries, by the names the texts use."""
        game, play, _ = self._started()
        here, held = (
            ", ".join(game.name(answer[asked][0]) for answer in game.wording.answers(question, play.facts))
            for question, asked in (_HERE, _HELD)
        )
        return f"at {here or 'no furniture'}, holding {held or 'nothing'}"

    def plan(self) -> list[str]:
        """Commands that lead from the current state to the goal, by the engine's planner; empty when it finds none.

        The stock engine plans in the whole house (half a minute for two objects at the official size); here it plans
        with the things that matter, and in the whole house only if these do not suffice.
        """
        game, play, _ = self._started()
        with _guarded("plan"):
            library = self._native()
            if not library.solve_sas(game.essential_sas(play.facts), False) and not play.solvable(library):
                return []
            steps = (fast_downward.Operator * library.get_last_plan_length())()
            library.get_last_plan(steps)
            # Planning numbers operators anew, so that here they are known by name.
            return [game.command(game.operator(step.name.split()), play.facts) for step in steps]

    def close(self) -> None:
        """Free the game and give the native library back to this process."""
        self._game = self._play = self._view = None
        if self._library is not None:
            self._library.cleanup()
            _idle_libraries.append(self._library)
            self._library = None

    def _native(self) -> ctypes.CDLL:
        if self._library is None:
            self._library = _idle_libraries.pop() if _idle_libraries else fast_downward.load_lib()
        return self._library

    def _loaded(self) -> Game:
        if self._game is None:
            raise EnvError("the ALFWorld engine has no game; call load first")
        return self._game

    def _started(self) -> tuple[Game, Play, View]:
        game = self._loaded()
        if self._play is None or self._view is None:
            raise EnvError("the ALFWorld engine has not started the game; call reset first")
        return game, self._play, self._view

    def _look(self, play: Play, observation: str) -> View:
        game = self._loaded()
        self._offered = {}
        for operator in play.offered():
            self._offered.setdefault(game.command(operator, play.facts), operator)
        commands = tuple(sorted(command for command in self._offered if command != "help"))
        self._view = View(observation, commands, play.won())
        return self._view


@contextmanager
def _guarded(doing: str) -> Iterator[None]:
    # The PDDL translator assigns to sys.argv, and may leave by SystemExit on a problem it rejects.
    argv = sys.argv
    try:
        yield
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(f"the ALFWorld engine failed to {doing}: {type(error).__name__}: {error}") from error
    finally:
        sys.argv = argv
