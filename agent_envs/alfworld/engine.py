"""Plays ALFWorld games on TextWorld's native PDDL engine: the stock engine's results without its repeated work.

The native library decides which operators apply, carries them out, checks the goal and plans; texts come from the
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
from alfworld.info import ALFRED_TWL2_PATH

from agent_envs.alfworld.facts import Facts
from agent_envs.alfworld.game import Game, Operator, shared_game
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
        with _guarded("start"):
            self._library = _idle_libraries.pop() if _idle_libraries else fast_downward.load_lib()
        self._game: Game | None = None
        self._facts = Facts()
        self._offered: dict[str, tuple[int, Operator]] = {}
        """Command -> the first operator with that text, and its number in the library."""
        self._buffer = (fast_downward.Operator * 64)()
        self._view: View | None = None

    def load(self, content: Mapping[str, Any], cache_dir: Path | None = None) -> None:
        """Take the parsed content of a ``game.tw-pddl`` file; its translation is kept in ``cache_dir``.

        Raises ``EnvError`` when the engine cannot read it.
        """
        self._game = None
        with _guarded("load the game"):
            self._game = shared_game(content, cache_dir)
        self._view = None

    def reset(self) -> View:
        """Start the loaded game from the beginning."""
        game = self._loaded()
        with _guarded("reset the game"):
            self._library.load_sas(game.sas)
            self._facts = game.start.copy()
            return self._look(game.intro)

    def step(self, command: str) -> View:
        """Carry out ``command``; one the engine does not know leaves the state as it is ("Nothing happens.")."""
        game = self._loaded()
        if self._view is None:
            raise EnvError("the ALFWorld engine has not started the game; call reset first")
        chosen = self._offered.get(command.strip())
        if chosen is None:
            self._view = View(_UNKNOWN_COMMAND, self._view.commands, self._view.won)
            return self._view
        with _guarded("take the step"):
            number, operator = chosen
            self._apply(game, number, operator)
            return self._look(game.wording.derive(operator.feedback, self._facts, operator.binding))

    def place(self) -> str:
        """Where the agent is and what it carries, by the names the texts use."""
        game = self._loaded()
        here, held = (
            ", ".join(game.name(answer[asked][0]) for answer in game.wording.answers(question, self._facts))
            for question, asked in (_HERE, _HELD)
        )
        return f"at {here or 'no furniture'}, holding {held or 'nothing'}"

    def plan(self) -> list[str]:
        """Commands that lead from the current state to the goal, by the engine's planner; empty when it finds none.

        The stock engine plans in the whole house (half a minute for two objects at the official size); here it plans
        with the things that matter, and in the whole house only if these do not suffice.
        """
        game = self._loaded()
        with _guarded("plan"):
            if not self._library.solve_sas(game.essential_sas(self._facts), False):
                self._library.load_sas_replan(game.whole_sas())
                if not self._library.replan(False):
                    return []
            steps = (fast_downward.Operator * self._library.get_last_plan_length())()
            self._library.get_last_plan(steps)
            # Planning numbers operators anew, so that here they are known by name.
            return [game.command(game.operator(step.name), self._facts) for step in steps]

    def close(self) -> None:
        """Free the game and give the native library back to this process."""
        if self._library is None:
            return
        self._library.cleanup()
        _idle_libraries.append(self._library)
        self._library = None
        self._game = self._view = None

    def _loaded(self) -> Game:
        if self._game is None:
            raise EnvError("the ALFWorld engine has no game; call load first")
        return self._game

    def _apply(self, game: Game, number: int, operator: Operator) -> None:
        if operator.changes is None:
            atoms = (fast_downward.Atom * operator.effects)()
            self._library.apply_operator(number, atoms)
            operator.changes = tuple(game.change(atom.name) for atom in atoms)
        else:
            self._library.apply_operator(number, None)
        for ended, begun in operator.changes:
            self._facts.discard(ended)
            self._facts.add(begun)

    def _look(self, observation: str) -> View:
        game = self._loaded()
        count = self._library.get_applicable_operators_count()
        if count > len(self._buffer):
            self._buffer = (fast_downward.Operator * (2 * count))()
        self._library.get_applicable_operators(self._buffer)
        self._offered = {}
        for position in range(count):
            entry = self._buffer[position]
            number = entry.id
            operator = game.operators.get(number)
            if operator is None:
                operator = game.operators[number] = game.operator(entry.name, entry.nb_effect_atoms)
            self._offered.setdefault(game.command(operator, self._facts), (number, operator))
        commands = tuple(sorted(command for command in self._offered if command != "help"))
        self._view = View(observation, commands, bool(self._library.check_goal()))
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
