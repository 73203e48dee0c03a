"""What an environment is: the types every environment and every user of one share.

An environment plays one text episode at a time. ``reset`` starts a task, ``step`` takes the agent's action *text*.
Nothing here knows of tokens, models or training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

__all__ = ["EnvError", "PromptTemplate", "Reset", "StepResult", "TextEnv", "UnknownTask"]


class EnvError(Exception):
    """The environment itself failed (broken data, a crashed engine). It ends one episode, never a run."""


class UnknownTask(EnvError):
    """A task or split name that the environment does not have."""


@dataclass(frozen=True)
class PromptTemplate:
    """How an environment words a turn; Jinja2 source, rendered by the rollout.

    ``turn`` sees ``task`` (the instruction, may be empty), ``observation``, ``history`` (oldest first, items with
    ``.step``, ``.observation``, ``.action``), ``admissible_actions`` (list, empty when hidden), ``step`` (0-based),
    ``think`` and ``action_tags`` (which answer format the run asks for).
    """

    turn: str
    system: str = ""


@dataclass(frozen=True)
class Reset:
    """Start of an episode."""

    observation: str
    state_key: str
    """Equal keys mean: the same state, for grouping steps of one rollout group."""
    task: str = ""
    """The instruction in words, where it is not part of the observation."""
    admissible_actions: tuple[str, ...] = ()
    category: str = ""
    """Task type, for success per category ("" when there is only one)."""
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepResult:
    """Outcome of one action."""

    observation: str
    state_key: str
    reward: float
    terminated: bool
    """The task ended by its own rules (success or failure)."""
    truncated: bool
    """The step limit ended the episode. Never true together with ``terminated``."""
    admissible: bool = True
    """Whether the environment recognised the action as possible in the state it was taken in."""
    success: bool = False
    score: float = 0.0
    """Task score in [0, 1]; equal to ``success`` where there is no partial credit."""
    admissible_actions: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


Expert = Callable[[], str]
"""Returns the expert's next action for the current state of the environment it came from."""


class TextEnv(ABC):
    """One environment instance; reusable for many episodes, used by one thread at a time.

    Contract (``tests/support/env_contract.py`` checks it for every registered environment):

    * ``tasks(split)`` is fixed for given options; task ids are unique across splits;
    * ``reset(task, seed)`` with equal arguments gives equal starts, and equal actions then give equal results;
    * ``step`` survives any string; an action it cannot read changes nothing but the step count;
    * after ``max_steps`` steps without termination the result is ``truncated``;
    * ``step`` after the end, or before ``reset``, raises ``EnvError``.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    prompt: ClassVar[PromptTemplate]
    max_steps: int
    record: Mapping[str, object] = MappingProxyType({})
    """What a run should note about the instance beside its options, in JSON types: which data it found, which rule."""

    @abstractmethod
    def tasks(self, split: str) -> Sequence[str]:
        """Task ids of a split, in a fixed order. Raises ``UnknownTask`` for a split it does not have."""

    @abstractmethod
    def reset(self, task: str, seed: int) -> Reset:
        """Start ``task``. ``seed`` drives whatever is random beyond the task itself."""

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Take one action given as text."""

    def expert(self) -> Expert | None:
        """A demonstrator for the running episode, or None where the environment has none."""
        return None

    def close(self) -> None:
        """Free what the instance holds; it is not used afterwards."""
