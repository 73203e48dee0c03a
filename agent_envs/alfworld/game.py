"""What all episodes of one game have in common: its rules or its translation, its names and its texts.

Everything here is a function of the game file's content, so the engines of a process share it: the members of a
rollout group, and all episodes of a game after the first. It holds no state of an episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import fast_downward
from textworld.generator.game import EntityInfo
from textworld.logic import Type, TypeHierarchy

from agent_envs.alfworld.facts import Binding, Change, Facts, fact_of, negated
from agent_envs.alfworld.known import KnownGame, read_known
from agent_envs.alfworld.planning import essential_problem, stated_problem
from agent_envs.alfworld.translation import translated
from agent_envs.alfworld.upstream import Demangler
from agent_envs.alfworld.wording import Wording
from agent_envs.base import EnvError

__all__ = ["Game", "Operator", "shared_game"]

_REQUIRED = ("pddl_domain", "grammar", "pddl_problem")

_KEPT_GAMES = 16
"""Games a process keeps, below 1 MB each at the official size. A process plays few at a time, many times each."""


@dataclass(eq=False)
class Operator:
    """One way to act in a game: an action with its parameters filled in."""

    binding: Binding
    template: str
    feedback: str
    command: str | None = None
    """The command's text, or None where it depends on the state."""
    changes: tuple[Change, ...] | None = None
    """What it does to the facts; None until it was carried out once, where only the native engine can tell. The engine
    reports an operator's effects from its definition, whatever the state, so they are the same every time."""
    number: int = -1
    """What the native engine knows it by."""
    effects: int = 0
    """How many atoms it changes in the native engine."""


class Game:
    """A game, ready to be played.

    Args:
        domain: PDDL domain.
        grammar: textworld's grammar of commands and feedback.
        problem: PDDL problem.
        cache_dir: see ``translated``.
    """

    def __init__(self, domain: str, grammar: str, problem: str, cache_dir: Path | None) -> None:
        self._domain = domain
        self._problem = problem
        self.known: KnownGame | None = read_known(domain, problem)
        """The game with its rules, where they are written out."""
        self.sas = b""
        """The translation that is played where they are not."""
        if self.known is not None:
            description = self.known.description
        else:
            translation = translated(domain, problem, cache_dir)
            description = translation.description
            self.sas = translation.sas.encode()
        self._objects = description.objects
        self._things = description.things()
        self._parameters = description.parameters
        self._changing = set(description.changing)
        hierarchy = TypeHierarchy()
        for name, ancestors in description.types.items():
            hierarchy.add(Type(name, ancestors))
        self.start = self.known.start if self.known else Facts(description.facts())
        """What holds at the beginning."""
        entities = self._entities()
        self._names: dict[str, str] = {name: entity.name for name, entity in entities.items()}
        self.wording = Wording(grammar, hierarchy, entities)
        self.operators: dict[object, Operator] = {}
        """Operators met so far, by what the game's play knows them by."""

    def essential_sas(self, facts: Facts) -> bytes:
        """A translation to plan with where ``facts`` hold, reduced to what the goal can need."""
        return self._plannable(essential_problem(self._domain, self._problem, facts))

    def whole_sas(self, facts: Facts | None = None) -> bytes:
        """A translation to plan with in the whole house where ``facts`` hold (None: from the beginning)."""
        return self._plannable(self._problem if facts is None else stated_problem(self._problem, self._objects, facts))

    @cached_property
    def intro(self) -> str:
        """The first observation; the facts at the beginning decide it."""
        return self.wording.derive("#intro#", self.start, {})

    def name(self, thing: str) -> str:
        """A thing's name in texts, such as "mug 1"."""
        return self._names[thing]

    def operator(self, name: Sequence[str]) -> Operator:
        """A new operator that the native engine calls ``name``: an action and its arguments."""
        action_name, *things = name
        action = self.wording.actions[action_name]
        parameters = self._parameters[action_name]
        # The translator appends the variables of "exists" to an action's parameters; an operator's name omits them.
        binding = {(name, kind): (thing, kind) for (name, kind), thing in zip(parameters, things, strict=False)}
        operator = Operator(binding, action.template, action.feedback_rule)
        # A command that asks only for predicates no action changes (in ALFRED: where the furniture stands) has one text
        # for the whole game.
        if not self.wording.predicates(action.template) & self._changing:
            operator.command = self.command(operator, self.start)
        return operator

    def command(self, operator: Operator, facts: Facts) -> str:
        """How the operator is asked for where ``facts`` hold."""
        if operator.command is not None:
            return operator.command
        # As the stock engine does it: what the grammar left in braces is filled with the parameters' names.
        text = self.wording.derive(operator.template, facts, operator.binding)
        names = {parameter: self._names[thing] for (parameter, _), (thing, _) in operator.binding.items()}
        return text.format(**names)

    def change(self, atom: str) -> Change:
        """The change that an effect brings about, given the native engine's name of its atom."""
        kind, _, rest = atom.partition(" ")
        predicate, _, arguments = rest.partition("(")
        things = [thing for thing in arguments[:-1].split(", ") if thing]
        begun = fact_of(self._things, predicate, things)
        if kind == "NegatedAtom":
            begun = negated(begun)
        return negated(begun), begun

    def _plannable(self, problem: str) -> bytes:
        sas: str
        _, sas = fast_downward.pddl2sas(self._domain, problem, optimize=True)
        return sas.encode()

    def _entities(self) -> dict[str, EntityInfo]:
        """The things that something holds of at the beginning, named as in the texts."""
        told = {thing for _, arguments in self.start for thing in arguments}
        entities = {name: EntityInfo(name, kind) for name, kind in told}
        numbered = Demangler(game_infos=entities, shuffle=False)
        for entity in entities.values():
            entity.name = numbered.demangle_alfred_name(entity.id)
            entity.definite, entity.indefinite = "the", "a"
        return entities


def shared_game(content: Mapping[str, Any], cache_dir: Path | None = None) -> Game:
    """The game of a parsed ``game.tw-pddl`` file, from this process's cache if it is there.

    The key is the content, so a file that was written again is read again. Raises ``EnvError`` if parts are missing.
    """
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise EnvError(f"the ALFWorld game lacks {', '.join(missing)}; generate or download it again")
    return _game(*(content[key] for key in _REQUIRED), cache_dir)


@lru_cache(maxsize=_KEPT_GAMES)
def _game(domain: str, grammar: str, problem: str, cache_dir: Path | None) -> Game:
    return Game(domain, grammar, problem, cache_dir)
