"""What all episodes of one game have in common: its translation for the native engine, its names and its texts.

Everything here is a function of the game file's content, so the engines of a process share it: the members of a
rollout group, and all episodes of a game after the first. It holds no state of an episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import fast_downward
from alfworld.agents.utils.misc import Demangler
from textworld.generator.game import EntityInfo
from textworld.logic import Type, TypeHierarchy

from agent_envs.alfworld.facts import Binding, Fact, Facts, negated
from agent_envs.alfworld.planning import essential_problem
from agent_envs.alfworld.translation import translated
from agent_envs.alfworld.wording import Wording
from agent_envs.base import EnvError

__all__ = ["Change", "Game", "Operator", "shared_game"]

_REQUIRED = ("pddl_domain", "grammar", "pddl_problem")

_KEPT_GAMES = 16
"""Games a process keeps, about 1 MB each at the official size. A process plays few games at a time, many times each."""

Change = tuple[Fact, Fact]
"""A fact that an effect ends, and the one it brings about."""


@dataclass(eq=False)
class Operator:
    """One way to act in a game: an action with its parameters filled in."""

    binding: Binding
    template: str
    feedback: str
    command: str | None
    """The command's text, or None where it depends on the state."""
    effects: int
    """How many atoms it changes."""
    changes: tuple[Change, ...] | None = None
    """What it does to the facts; None until it was carried out once. The engine reports an operator's effects from
    its definition, whatever the state, so they are the same every time."""


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
        translation = translated(domain, problem, cache_dir)
        self.sas = translation.sas.encode()
        """The translation that is played."""
        self._types = translation.objects
        self._parameters = translation.parameters
        self._changing = set(translation.changing)
        hierarchy = TypeHierarchy()
        # ALFRED declares "object", which is also the root of all types; as in the stock engine, the root comes first.
        for name, ancestors in dict(reversed(translation.types)).items():
            hierarchy.add(Type(name, ancestors))
        self.start = Facts(self._fact(predicate, arguments) for predicate, *arguments in translation.start)
        """What holds at the beginning."""
        things = self._named_things()
        self._names = {name: thing.name for name, thing in things.items()}
        self.wording = Wording(grammar, hierarchy, things)
        self.operators: dict[int, Operator] = {}
        """Operators met so far, by their numbers in the translation."""

    def essential_sas(self, facts: Facts) -> bytes:
        """A translation to plan with where ``facts`` hold, reduced to what the goal can need."""
        problem = essential_problem(self._domain, self._problem, facts)
        return fast_downward.pddl2sas(self._domain, problem, optimize=True)[1].encode()

    def whole_sas(self) -> bytes:
        """A translation to plan with in the whole house."""
        return fast_downward.pddl2sas(self._domain, self._problem, optimize=True)[1].encode()

    @cached_property
    def intro(self) -> str:
        """The first observation; the facts at the beginning decide it."""
        return self.wording.derive("#intro#", self.start, {})

    def name(self, thing: str) -> str:
        """A thing's name in texts, such as "mug 1"."""
        return self._names[thing]

    def operator(self, name: str, effects: int = 0) -> Operator:
        """A new operator that the native engine calls ``name`` (action and arguments, apart by blanks)."""
        action_name, *things = name.split()
        action = self.wording.actions[action_name]
        parameters = self._parameters[action_name]
        # The translator appends the variables of "exists" to an action's parameters; an operator's name omits them.
        binding = {(name, kind): (thing, kind) for (name, kind), thing in zip(parameters, things, strict=False)}
        operator = Operator(binding, action.template, action.feedback_rule, command=None, effects=effects)
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
        begun = self._fact(predicate, things)
        if kind == "NegatedAtom":
            begun = negated(begun)
        return negated(begun), begun

    def _fact(self, predicate: str, things: list[str] | tuple[str, ...]) -> Fact:
        typed = tuple((thing, self._types[thing]) for thing in things)
        return (predicate, tuple(kind for _, kind in typed)), typed

    def _named_things(self) -> dict[str, EntityInfo]:
        things = {name: EntityInfo(name, kind) for _, arguments in self.start for name, kind in arguments}
        numbered = Demangler(game_infos=things, shuffle=False)
        for thing in things.values():
            thing.name = numbered.demangle_alfred_name(thing.id)
            thing.definite, thing.indefinite = "the", "a"
        return things


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
