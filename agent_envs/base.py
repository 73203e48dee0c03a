"""The interface of environments: the types that every environment and every user of one share.

An environment plays one text episode at a time. ``reset`` starts a task, ``step`` takes the agent's action *text*.
Nothing here knows about tokens, models or training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, overload

from agent_envs.declarations import Generator, Needs, Service
from agent_envs.errors import EnvError, UnknownTask

__all__ = [
    "EnvError",
    "ExactModel",
    "Expert",
    "Move",
    "NumberedTasks",
    "PromptTemplate",
    "Recording",
    "Reset",
    "StepResult",
    "TextEnv",
    "UnknownTask",
    "View",
]


_LATER = """\
{{ observation }}
{%- if admissible_actions %}

Possible actions: {{ admissible_actions | join(", ") }}
{%- endif %}"""


@dataclass(frozen=True)
class PromptTemplate:
    """The wording of an environment's turns, as Jinja2 source that the rollout renders.

    ``turn`` can use ``task`` (the instruction, may be empty), ``observation``, ``history`` (oldest first, items with
    ``.step``, ``.observation``, ``.action``), ``admissible_actions`` (list, empty when hidden), ``step`` (0-based),
    ``think`` and ``action_tags`` (which answer format the run asks for). ``later`` words the turns after the first in a
    run whose prompts hold the whole conversation; it can use the same variables without ``history``. ``answer`` words
    the response that gives a final ``answer``, in environments that have one to give; it can use that, ``think`` and
    ``action_tags``, and must show ``answer`` once.
    """

    turn: str
    system: str = ""
    later: str = _LATER
    answer: str = ""


@dataclass(frozen=True)
class Reset:
    """Start of an episode."""

    observation: str
    state_key: str
    """Equal keys mean the same state when the steps of a rollout group are compared."""
    task: str = ""
    """The instruction in words, if it is not part of the observation."""
    admissible_actions: tuple[str, ...] = ()
    category: str = ""
    """Task type, for success per category ("" when there is only one)."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth recording, in JSON types."""


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
    """Task score in [0, 1]; equal to ``success`` if there is no partial credit."""
    admissible_actions: tuple[str, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth recording, in JSON types."""


@dataclass(frozen=True)
class Recording:
    """A state as the way to it, for environments whose state is costly to copy: equal actions lead to equal states."""

    task: str
    seed: int
    actions: tuple[str, ...] = ()

    def then(self, action: str) -> Recording:
        """Return the recording with one more action."""
        return replace(self, actions=(*self.actions, action))

    def play(self, env: TextEnv) -> None:
        """Bring ``env`` into this state."""
        env.reset(self.task, self.seed)
        for action in self.actions:
            env.step(action)


@dataclass(frozen=True)
class View:
    """What a player sees of a state, as ``Reset`` and ``StepResult`` show it."""

    observation: str
    state_key: str
    admissible_actions: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True)
class Move:
    """What an action that the environment recognises does."""

    state: Hashable
    """The state afterwards; equal states have equal futures."""
    reward: float = 0.0
    terminated: bool = False


class ExactModel(ABC):
    """The rules of an environment in which nothing is random after ``reset``, for dynamic programming.

    States are hashable values without a clock: the step limit is the environment's ``max_steps``. An action that is not
    recognised leaves the state as it is, earns nothing and uses up a step.
    """

    returns: tuple[float, float]
    """Lowest and highest sum of the rewards that can follow any state, discounted by any factor from 0 to 1."""

    @abstractmethod
    def start(self, task: str, seed: int) -> Hashable:
        """Return the state that ``reset(task, seed)`` starts in. Raises ``UnknownTask``."""

    @abstractmethod
    def view(self, state: Hashable, step: int) -> View:
        """Return what is shown of ``state`` before the action number ``step`` (0-based)."""

    @abstractmethod
    def move(self, state: Hashable, action: str) -> Move | None:
        """Return what the text ``action`` does in ``state``, or None if it is not recognised there."""

    def hopeless(self, listed: Collection[str], beginning: str) -> bool:
        """Return whether no text that begins so is recognised in a state that lists these actions; False if unknown."""
        return False


Expert = Callable[[], str]
"""Returns the expert's next action for the current state of the environment it came from."""


@dataclass(frozen=True)
class NumberedTasks(Sequence[str]):
    """Task ids ``<prefix>0``, ``<prefix>1`` and so on, made on demand because a split may have millions.

    It takes only a few bytes when it is sent to another process.
    """

    prefix: str
    size: int

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        chosen = range(self.size)[index]
        if isinstance(chosen, range):
            return [f"{self.prefix}{number}" for number in chosen]
        return f"{self.prefix}{chosen}"

    def __contains__(self, task: object) -> bool:
        return isinstance(task, str) and self.number_of(task) is not None

    def number_of(self, task: str) -> int | None:
        """Return the number in a task id, or None for an id that is not one of these."""
        text = task.removeprefix(self.prefix)
        if len(text) == len(task) - len(self.prefix) and text.isdecimal() and len(text) <= len(str(self.size)):
            number = int(text)
            # Compared as text, because "07" would be a second name for one task.
            if number < self.size and str(number) == text:
                return number
        return None


class TextEnv(ABC):
    """One environment instance, reusable for many episodes and used by one thread at a time.

    Contract, which ``agent_envs.testing`` and ``gagpo env check`` check:

    * ``tasks(split)`` is fixed for given options, works for every name in ``splits`` and no other; task ids are
      unique across splits;
    * ``reset(task, seed)`` with equal arguments gives equal starts, and equal actions then give equal results; it may
      be called at any time;
    * ``step`` survives any string; an action it cannot read changes nothing but the step count;
    * after ``max_steps`` steps without termination the result is ``truncated``;
    * ``step`` after the end, or before ``reset``, raises ``EnvError``;
    * ``info`` of every answer is a mapping from names to JSON values, and so is ``task_payload`` of every task;
    * ``final_score`` is None or in [0, 1], and asking for it changes nothing;
    * ``prompt`` is the class's for all options, unless it says that its ``prompt_varies``;
    * if ``can_snapshot``, an instance that ``restore`` brought into a state gives the results of the episode that
      ``snapshot`` was taken in.

    Listing environments imports the module of every registered one, so packages that are slow to import, or listed in
    ``needs``, are imported where they are used.
    """

    name: str
    """Set by ``register``."""
    splits: tuple[str, ...]
    """Names of the splits; an instance whose options change them sets its own."""
    prompt: PromptTemplate
    prompt_varies: ClassVar[bool] = False
    """Whether the options change the prompt; an instance then sets its own, and one is made to ask it."""
    max_steps: int
    record: Mapping[str, object] = MappingProxyType({})
    """Facts that a run records about the instance besides its options, in JSON types, such as which data it found."""
    needs: ClassVar[Needs] = Needs()
    """Packages that the base install does not contain."""
    generator: ClassVar[Generator | None] = None
    """Makes data to play with; None if there is nothing to make."""
    service: ClassVar[Service | None] = None
    """Offers its data to other processes; None if there is nothing to offer."""
    action_tags: ClassVar[tuple[str, ...]] = ("action",)
    """Names of the tags around an action, in runs that ask for tags. Of one name the last complete pair counts, and its
    content is the action; of several names the first pair to be completed, and the action keeps its tags."""
    can_snapshot: bool = False
    """Whether ``snapshot`` and ``restore`` work."""
    waits: bool = False
    """Whether ``astep`` may wait for something outside of the process; worker processes then await it."""
    placeholders: tuple[str, ...] = ()
    """Parts of listed actions that the agent replaces with its own words, such as "<query>" in "search[<query>]"."""

    @classmethod
    def find_data(cls, **options: Any) -> Iterable[str]:
        """Yield lines for the user that say where the data for these options was looked for and what was found.

        Raises ``EnvError`` after the last line if nothing can be played. An environment that needs no data yields none.
        """
        return ()

    @classmethod
    def preload(cls, **options: Any) -> None:
        """Load data that worker processes can share; called once, with an instance's options, before the fork."""

    @abstractmethod
    def tasks(self, split: str) -> Sequence[str]:
        """Return the task ids of a split, in a fixed order. Raises ``UnknownTask`` for a split that does not exist.

        If there may be many, return a sequence that makes them on demand, such as ``NumberedTasks``.
        """

    @abstractmethod
    def reset(self, task: str, seed: int) -> Reset:
        """Start ``task``. ``seed`` determines everything that is random beyond the task itself."""

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Take one action given as text."""

    async def astep(self, action: str) -> StepResult:
        """Do what ``step`` does, and await what it waits for, so that a worker goes on with its other episodes."""
        return self.step(action)

    def final_score(self) -> float | None:
        """Return the score in [0, 1] that the running episode has if it ends here, or None for that of its last step.

        Asked where an episode is cut off from outside, as by a step limit that the environment does not know. Whoever
        asks may let the episode go on.
        """
        return None

    def task_payload(self, task: str) -> Mapping[str, Any]:
        """Return what a trainer may know of a task before it is played, in JSON types; {} if there is nothing.

        It may hold the solution, so no agent sees it. Raises ``UnknownTask``.
        """
        return {}

    def expert(self) -> Expert | None:
        """Return a demonstrator for the running episode, or None if the environment has none."""
        return None

    def snapshot(self) -> object:
        """Return the state of the running episode, as a value that can be pickled. Raises ``EnvError``."""
        raise EnvError(f"{self.name} takes no snapshots; play the episode again instead")

    def restore(self, state: object) -> None:
        """Continue from a state that ``snapshot`` of an instance with equal options returned. Raises ``EnvError``."""
        raise EnvError(f"{self.name} restores no snapshots; play the episode again instead")

    def model(self) -> ExactModel | None:
        """Return the rules for computing exact values, or None if the environment has none to offer."""
        return None

    def describe_tasks(self, tasks: Mapping[str, Sequence[str]]) -> Iterable[str]:
        """Yield lines for the user about the data behind ``tasks`` (ids by split), with official numbers if any."""
        yield ", ".join(f"{split} {len(ids)}" for split, ids in tasks.items())

    def close(self) -> None:
        """Release the instance's resources; it is not used afterwards."""
