"""The stock TextWorld PDDL engine with ALFWorld's object names, behind a small interface.

Importing this module imports ``textworld`` and ``alfworld``. An engine holds a native library; it is used from one
thread (threads break the library), while several engines may take turns in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld import EnvInfos
from textworld.envs.pddl import PddlEnv

from agent_envs.base import EnvError

__all__ = ["Engine", "View"]

_REQUIRED = ("pddl_domain", "grammar", "pddl_problem")


@dataclass(frozen=True)
class View:
    """What the engine shows of a state."""

    observation: str
    commands: tuple[str, ...]
    """Commands that are possible now, sorted, without ``help``."""
    won: bool


class Engine:
    """One game at a time: ``load`` it, ``reset`` it as often as needed, ``step`` through it."""

    def __init__(self) -> None:
        with _guarded("start"):
            self._pddl = PddlEnv(EnvInfos(won=True, admissible_commands=True))
            self._env = AlfredDemangler(self._pddl, shuffle=False)

    def load(self, game: Mapping[str, Any]) -> None:
        """Take the parsed content of a ``game.tw-pddl`` file. Raises ``EnvError`` when the engine cannot read it."""
        missing = [key for key in _REQUIRED if key not in game]
        if missing:
            raise EnvError(f"the ALFWorld game lacks {', '.join(missing)}; generate or download it again")
        with _guarded("load the game"):
            self._env.load(game)

    def reset(self) -> View:
        """Start the loaded game from the beginning."""
        with _guarded("reset the game"):
            return _view(self._env.reset())

    def step(self, command: str) -> View:
        """Carry out ``command``; one the engine does not know leaves the state as it is ("Nothing happens.")."""
        with _guarded("take the step"):
            state, _, _ = self._env.step(command)
            return _view(state)

    def plan(self) -> list[str]:
        """Commands that lead from the current state to the goal, by the engine's planner; empty when it finds none.

        This is what the engine puts into ``policy_commands``, asked for once here because it is slow (seconds in the
        official houses) and the engine would otherwise recompute it at every step.
        """
        with _guarded("plan"):
            return list(self._pddl._pddl_state.replan(self._pddl._entity_infos))

    def close(self) -> None:
        """Free the game. The native library stays loaded: it registers an exit handler, so unloading it would crash."""
        self._pddl.downward_lib.cleanup()


def _view(state: Mapping[str, Any]) -> View:
    commands = tuple(command for command in state["admissible_commands"] if command != "help")
    return View(observation=state["feedback"], commands=commands, won=bool(state["won"]))


@contextmanager
def _guarded(doing: str) -> Iterator[None]:
    # The PDDL translator assigns to sys.argv, and may leave by SystemExit on a problem it rejects.
    argv = sys.argv
    try:
        yield
    except (Exception, SystemExit) as error:
        raise EnvError(f"the ALFWorld engine failed to {doing}: {type(error).__name__}: {error}") from error
    finally:
        sys.argv = argv
