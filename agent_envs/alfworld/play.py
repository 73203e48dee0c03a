"""Playing a game: which operators apply, what they change, whether the goal is reached.

``WrittenPlay`` goes by the rules written out, ``NativePlay`` asks the native library, which needs a translation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Protocol

import fast_downward

from agent_envs.alfworld.facts import NEGATION, Facts
from agent_envs.alfworld.game import Game, Operator
from agent_envs.alfworld.known import KnownGame

__all__ = ["NativePlay", "Play", "WrittenPlay"]


class Play(Protocol):
    """One game from its beginning on."""

    facts: Facts
    """What holds now, as far as texts can ask."""

    def offered(self) -> Iterator[Operator]:
        """Operators that apply now."""

    def carry_out(self, operator: Operator) -> None:
        """Change the state as an operator does that applies now."""

    def won(self) -> bool:
        """Whether the goal is reached."""

    def solvable(self, library: ctypes.CDLL) -> bool:
        """Let ``library`` plan in the whole house from here; whether it finds a plan, which it then keeps."""


class WrittenPlay:
    """A game whose rules are written out."""

    def __init__(self, game: Game, known: KnownGame) -> None:
        self._game = game
        self._rules = known.rules
        self._goal = known.goal
        self.facts = game.start.copy()
        self._won: bool | None = None
        """None where a fact has changed that the goal asks for."""

    def offered(self) -> Iterator[Operator]:
        operators = self._game.operators
        for deed in self._rules.deeds(self.facts):
            operator = operators.get(deed)
            if operator is None:
                operator = operators[deed] = self._game.operator(deed)
                operator.changes = self._rules.changes(deed)
            yield operator

    def carry_out(self, operator: Operator) -> None:
        _change(self.facts, operator)
        if any(begun[0][0].removeprefix(NEGATION) in self._goal.predicates for _, begun in operator.changes or ()):
            self._won = None

    def won(self) -> bool:
        if self._won is None:
            self._won = self._goal.reached(self.facts)
        return self._won

    def solvable(self, library: ctypes.CDLL) -> bool:
        return bool(library.solve_sas(self._game.whole_sas(self.facts), False))


class NativePlay:
    """A game of any domain, translated for the native library."""

    def __init__(self, game: Game, library: ctypes.CDLL) -> None:
        self._game = game
        self._library = library
        self._buffer = (fast_downward.Operator * 64)()
        self.facts = game.start.copy()
        library.load_sas(game.sas)

    def offered(self) -> Iterator[Operator]:
        count = self._library.get_applicable_operators_count()
        if count > len(self._buffer):
            self._buffer = (fast_downward.Operator * (2 * count))()
        self._library.get_applicable_operators(self._buffer)
        operators = self._game.operators
        for position in range(count):
            entry = self._buffer[position]
            number = entry.id
            operator = operators.get(number)
            if operator is None:
                operator = operators[number] = self._game.operator(entry.name.split())
                operator.number, operator.effects = number, entry.nb_effect_atoms
            yield operator

    def carry_out(self, operator: Operator) -> None:
        if operator.changes is None:
            atoms = (fast_downward.Atom * operator.effects)()
            self._library.apply_operator(operator.number, atoms)
            operator.changes = tuple(self._game.change(atom.name) for atom in atoms)
        else:
            self._library.apply_operator(operator.number, None)
        _change(self.facts, operator)

    def won(self) -> bool:
        return bool(self._library.check_goal())

    def solvable(self, library: ctypes.CDLL) -> bool:
        library.load_sas_replan(self._game.whole_sas())
        return bool(library.replan(False))


def _change(facts: Facts, operator: Operator) -> None:
    for ended, begun in operator.changes or ():
        facts.discard(ended)
        facts.add(begun)
