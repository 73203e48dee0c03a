"""What is exported: episodes with their credit, the same steps as columns, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.export.prompts import PromptReader
from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.rollout.types import Episode, Usage

__all__ = ["Origin", "Recorded", "Recording", "opening"]


@dataclass(frozen=True)
class Origin:
    """Where episodes come from, as far as it is known."""

    title: str
    environment: str = ""
    split: str = ""
    model: str = ""
    agent: str = ""
    """How the policy was used; "" in training."""
    started: str = ""
    """Time in ISO 8601."""
    ended: str = ""
    commit: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings of the run or the evaluation, in JSON types and without secrets."""
    chat_template: str = ""
    """``auto`` or ``none``, as it was set."""
    think: bool | None = None
    tokenizers: Sequence[str] = ()
    """Folders or names of models that may hold the tokenizer, the likeliest first."""


@dataclass(frozen=True)
class Recorded:
    """One episode."""

    played: PlayedEpisode
    iteration: int | None = None
    """None outside a run."""
    usage: Usage | None = None
    """What it cost, where that was recorded."""

    @property
    def episode(self) -> Episode:
        """The episode itself."""
        return self.played.episode


@dataclass(frozen=True)
class Recording:
    """Episodes to export."""

    origin: Origin
    episodes: Sequence[Recorded]
    """In the order of the records, faulted ones included."""
    steps: Callable[[], Source]
    """Returns the same episodes as columns, as ``gagpo credit`` reads them."""
    tokenizer: str = ""
    """What the user named instead of ``Origin.tokenizers``."""

    @cached_property
    def prompts(self) -> PromptReader:
        """What turns prompts back into messages. Raises ``ConfigError`` if no tokenizer is found."""
        origin = self.origin
        names = (self.tokenizer,) if self.tokenizer else tuple(origin.tokenizers)
        return PromptReader.load(names, chat_template=origin.chat_template, think=origin.think)


def opening(episode: Episode) -> str:
    """Return what the environment said first: its instruction, if there is one apart, and the first observation."""
    first = episode.steps[0].observation if episode.steps else str(episode.extra.get("final_observation", ""))
    instruction = str(episode.extra.get("instruction", ""))
    return first if instruction in first else f"{instruction}\n\n{first}"
