"""How an agent uses a policy: the interface of agents, what they have to play a task, and their names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.options import Options
from openrlhf_gagpo.registry import Registry
from openrlhf_gagpo.rollout.types import Episode

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.table import Table

__all__ = ["Agent", "AgentEntry", "AgentOptions", "get", "names", "register", "restore", "snapshot"]


@dataclass(frozen=True)
class AgentOptions(Options):
    """Base of an agent's options; a field ``x`` is the flag ``--agent.x``."""


class Agent(ABC):
    """A way to play a task with a policy of messages. One instance plays all tasks of an evaluation."""

    reads_prompts: ClassVar[bool] = True
    """Whether it needs a policy that answers from its prompt."""
    thinks: ClassVar[bool] = False
    """Whether it needs a thought and an action in tags."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def wording(self) -> str:
        """Return the text that it adds to the environment's prompts, for their hash."""
        return ""

    @abstractmethod
    async def play(self, table: Table) -> list[Episode]:
        """Play the task of ``table`` and return its trials in order; the last one counts."""


Made = TypeVar("Made", bound=type[Agent])


@dataclass(frozen=True)
class AgentEntry:
    """A registered agent."""

    name: str
    make: type[Agent]
    options_cls: type[AgentOptions]


_AGENTS: Registry[AgentEntry] = Registry("agent", ConfigError)
get, names, snapshot, restore = _AGENTS.get, _AGENTS.names, _AGENTS.snapshot, _AGENTS.restore


def register(name: str, options_cls: type[AgentOptions] = AgentOptions) -> Callable[[Made], Made]:
    """Make an ``Agent`` available as ``name``; use it as a decorator. Raises ``ConfigError`` for a taken name."""

    def add(make: Made) -> Made:
        _AGENTS.add(name, AgentEntry(name, make, options_cls))
        return make

    return add
