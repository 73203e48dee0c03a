"""What an evaluation plays with: the interface of policies that are ready for use, and their names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from agent_envs.base import TextEnv
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.options import Options
from openrlhf_gagpo.registry import Registry
from openrlhf_gagpo.rollout.parse import ACTION_TAGS
from openrlhf_gagpo.rollout.types import Policy

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.prompt import ChatTemplate
    from openrlhf_gagpo.rollout.watched import WatchedSession

__all__ = [
    "NoTokenizer",
    "PolicyEntry",
    "PolicyOptions",
    "PolicySetting",
    "PolicySource",
    "get",
    "implied",
    "names",
    "register",
    "restore",
    "snapshot",
]


@dataclass(frozen=True)
class PolicyOptions(Options):
    """Base of a policy's options; a field ``x`` is the flag ``--policy.x``."""

    operational: ClassVar[frozenset[str]] = frozenset()
    """Options that say how the work is done and not what is evaluated; a continued evaluation may change them."""


@dataclass(frozen=True)
class PolicySetting:
    """What a policy has to know of the evaluation."""

    think: bool
    action_tags: bool
    chat_template: ChatTemplate
    max_len: int
    """Tokens of prompt and response together."""
    seed: int
    tag_names: Sequence[str] = ACTION_TAGS
    """Names of the tags around an action, ``TextEnv.action_tags``."""


class NoTokenizer:
    """Stands in for the tokenizer of a policy that has none here: no prompt is encoded, so none is fitted."""

    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return no ids, which fit every limit."""
        return []

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return no text; the policy gives it."""
        return ""


class PolicySource(ABC):
    """A policy of one evaluation. It is made before anything heavy is loaded.

    ``start`` to ``aclose`` are called in one event loop; ``seat`` and ``done`` once per episode.
    """

    reads_prompts: ClassVar[bool] = True
    """Whether it answers from its prompt, so that an agent may ask it anything."""
    tokenizer: Any = NoTokenizer()
    """Encodes the prompts and decodes sampled tokens."""

    def __init__(self, options: Any, setting: PolicySetting) -> None:
        self.options = options
        self.setting = setting

    @property
    def label(self) -> str:
        """The policy in a few words, for tables."""
        return ""

    def facts(self) -> dict[str, object]:
        """Return what identifies the policy besides its options, in JSON types."""
        return {}

    def check(self, env: TextEnv, task: str) -> None:
        """Raise ``ConfigError`` if it cannot play ``env``, of which ``task`` will be played."""
        return None

    async def start(self, episodes: int, concurrency: int) -> None:
        """Get ready for so many episodes, at most ``concurrency`` at a time."""
        return None

    @abstractmethod
    def seat(self, session: WatchedSession) -> Policy:
        """Return the policy of one episode, which is played in ``session``."""

    def done(self) -> None:
        """Note that an episode has ended."""
        return None

    async def aclose(self) -> None:
        """Release everything."""
        return None


Source = TypeVar("Source", bound=type[PolicySource])


@dataclass(frozen=True)
class PolicyEntry:
    """A registered policy."""

    name: str
    make: type[PolicySource]
    options_cls: type[PolicyOptions]
    implied_by: frozenset[str]
    """Options that choose it when all of them are given and no policy is named; empty for never."""


_POLICIES: Registry[PolicyEntry] = Registry("policy", ConfigError)
get, names, snapshot, restore = _POLICIES.get, _POLICIES.names, _POLICIES.snapshot, _POLICIES.restore


def register(
    name: str, options_cls: type[PolicyOptions] = PolicyOptions, *, implied_by: Sequence[str] = ()
) -> Callable[[Source], Source]:
    """Make a ``PolicySource`` available as ``name``; use it as a decorator. Raises ``ConfigError`` for a taken name."""

    def add(make: Source) -> Source:
        _POLICIES.add(name, PolicyEntry(name, make, options_cls, frozenset(implied_by)))
        return make

    return add


def implied(given: Mapping[str, object]) -> PolicyEntry | None:
    """Return the policy that the given options imply: of those whose options are all there, the one with the most."""
    fitting = [entry for entry in snapshot().values() if entry.implied_by and entry.implied_by <= given.keys()]
    return max(fitting, key=lambda entry: len(entry.implied_by), default=None)
