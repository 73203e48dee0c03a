"""Records that flow from rollout to credit and training, and the interface between episode code and policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypedDict

from agent_envs.base import Reset
from openrlhf_gagpo.rollout.stopping import StopRule

__all__ = [
    "AnswerTokens",
    "Completion",
    "EndReason",
    "Episode",
    "EpisodeRequest",
    "Exchange",
    "FinishReason",
    "HistoryEntry",
    "Message",
    "Place",
    "Policy",
    "Prompt",
    "PromptForm",
    "SamplingParams",
    "ShownTurn",
    "Step",
    "Usage",
]

FinishReason = Literal["stop", "length"]
PromptForm = Literal["tokens", "text", "messages", "none"]
"""What of a ``Prompt`` a policy read; an expert reads none of it."""
EndReason = Literal["terminated", "truncated", "prompt_too_long", "env_fault", "policy_fault"]


@dataclass(frozen=True)
class SamplingParams:
    """How one turn is sampled."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """Seed of this one generation; None lets the policy use its own stream."""
    stop: StopRule | None = None
    """Where an action ends before an end-of-sequence token, for a policy that samples tokens; None for nowhere."""


class Message(TypedDict):
    """One message of a conversation, in the form of chat templates and chat endpoints."""

    role: str
    content: str


class ShownTurn(NamedTuple):
    """A turn of the environment in a transcript."""

    step: int
    """0-based."""
    observation: str
    admissible_actions: tuple[str, ...]
    """Those that are listed."""
    ends: tuple[int, int, int] = (0, 0, 0)
    """Where its prompt ends among the token ids, characters and messages of a transcript that goes on from it."""


@dataclass(frozen=True)
class Prompt:
    """The input of a policy, in every form that a policy may need."""

    token_ids: list[int]
    """For a policy that samples tokens; training uses these ids."""
    text: str
    """The text that ``token_ids`` encodes."""
    messages: list[Message]
    """For a policy that takes messages and returns text; the same content without chat markers."""
    history_dropped: int = 0
    """Entries inside the history window that were left out to fit; entries beyond the window do not count. In a
    transcript, the turns before its first."""
    sequence: int | None = None
    """Number of the transcript that it goes on with in its episode; None if it begins a sequence of its own."""
    turns: tuple[ShownTurn, ...] = ()
    """The turns in a transcript, oldest first."""


@dataclass(frozen=True)
class Usage:
    """What generations cost."""

    requests: int = 0
    """Requests sent, those that failed and were sent again included."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that an endpoint or engine read from its cache; they are part of ``prompt_tokens``."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True)
class Completion:
    """The policy's answer to one prompt.

    A policy that samples tokens returns their ids and log-probabilities; one that only produces text returns ``text``.
    An episode played without token ids can be evaluated but not trained on.
    """

    token_ids: list[int]
    """Sampled ids, including the end-of-sequence id if it was sampled; empty if only the text is known."""
    log_probs: list[float]
    """Log-probability of each sampled id under the sampling distribution."""
    finish_reason: FinishReason
    text: str | None = None
    """The response as text, if there are no ids to decode."""
    sampled_by: str = ""
    """Name that a backend gives to its present weights, if ``log_probs`` equal those of its training pass with these
    weights; "" makes no such promise."""
    prompt_form: PromptForm = "tokens"
    """What the policy was given, so that the record holds the prompt as it was sent."""
    usage: Usage | None = None
    """What it cost, as an endpoint or an engine says; None for a policy whose tokens are in ``Prompt`` and
    ``token_ids``."""


class Exchange(NamedTuple):
    """A prompt and what the policy made of it, from which a transcript goes on."""

    prompt: Prompt
    completion: Completion
    response: str
    """The response as text without special tokens."""


class Policy(Protocol):
    """The only interface that an episode has to its player."""

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """Answer ``prompt``: with sampled tokens, or from its messages with text alone."""
        ...


class HistoryEntry(NamedTuple):
    """One earlier turn: the observation and the action sent to the environment."""

    step: int
    """0-based."""
    observation: str
    action: str
    response: str = ""
    """All that the policy answered; "" if it is not known."""


@dataclass(frozen=True)
class Place:
    """A point in an episode at which others can begin: the environment's state, and what the agent knows by then."""

    state: object
    """What ``TextEnv.snapshot`` returned there."""
    shown: Reset
    """What the environment shows there, as if the episode began with it."""
    history: tuple[HistoryEntry, ...]
    """All turns before it, oldest first."""
    previous: Exchange | None = None
    """The last of them in tokens; None if there is none."""


@dataclass(frozen=True)
class EpisodeRequest:
    """One episode to play. The members of a rollout group share ``group``, ``task`` and ``env_seed``."""

    task: str
    group: str
    trajectory: str
    env_seed: int
    sampling_seed: int | None = None
    """Root of the per-turn generation seeds; None if generation is unseeded."""
    place: Place | None = None
    """Where in another episode of the task it begins; None for the task's start."""


@dataclass
class Step:
    """One environment step: the unit of credit and one training row."""

    index: int
    """0-based position in the episode."""
    state_key: str
    next_state_key: str
    observation: str
    action: str
    """The action text that the environment received."""
    reward: float
    terminated: bool
    truncated: bool
    format_valid: bool
    """Whether the response had the required form (tags, thinking)."""
    admissible: bool
    """Whether the environment recognised the action, independent of the format."""
    prompt_ids: list[int]
    """What the policy read; empty if that was no token ids."""
    response_ids: list[int]
    sampling_log_probs: list[float]
    response: str
    """Decoded response for readers; never tokenised again."""
    finish_reason: str = "stop"
    history_dropped: int = 0
    """``Prompt.history_dropped``: earlier turns left out because the prompt would not fit."""
    info: dict[str, object] = field(default_factory=dict)
    """``StepResult.info`` of the environment, in JSON types."""
    sequence: int = -1
    """Number of the step's token sequence in the episode: steps with the same number go on from one another's tokens.
    A negative number stands for a sequence of its own, whose number is then ``index``."""
    messages: list[Message] = field(default_factory=list)
    """The messages that a policy read in place of ``prompt_ids``; a plain text is one message of the user."""
    sampled_by: str = field(default="", compare=False)
    """``Completion.sampled_by``. It means something only to the backend that played the step, so it is not recorded."""

    def __post_init__(self) -> None:
        if self.sequence < 0:
            self.sequence = self.index


@dataclass(frozen=True)
class AnswerTokens:
    """A golden answer as the policy would give it after any prompt of an episode."""

    ids: list[int]
    """What it would sample up to the answer's last token."""
    start: int
    """Position in ``ids`` of the answer's first token; what stands before only leads to it."""


@dataclass
class Episode:
    """One played episode with its identity and outcome."""

    task: str
    group: str
    trajectory: str
    env_seed: int
    steps: list[Step]
    end_reason: EndReason
    category: str = ""
    success: bool = False
    score: float = 0.0
    error: str = ""
    """What went wrong, for ``env_fault``, ``policy_fault`` and ``prompt_too_long``."""
    generation_s: float = 0.0
    environment_s: float = 0.0
    cached_tokens: int | None = None
    """Prompt tokens of all steps that the policy's engine had in its prefix cache; None if it does not say."""
    extra: dict[str, object] = field(default_factory=dict)
    info: dict[str, object] = field(default_factory=dict)
    """``Reset.info`` of the environment, in JSON types."""
    fault: str = ""
    """Name of the traceback in the run folder; "" if there is none."""
    traceback: str = field(default="", compare=False)
    """Traceback of the environment, if it raised. The run folder keeps it once for all episodes that share it."""

    answers: list[AnswerTokens] = field(default_factory=list, compare=False)
    """The task's golden answers, in runs that measure how likely they become; not recorded."""
    final_prompt_ids: list[int] = field(default_factory=list, compare=False)
    """In such runs the prompt that a further step of a truncated episode would have had; not recorded."""

    @property
    def faulted(self) -> bool:
        """Whether environment or policy failed, so that the episode must be removed from its group before credit."""
        return self.end_reason in ("env_fault", "policy_fault")

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of environment rewards."""
        return sum(step.reward for step in self.steps)
