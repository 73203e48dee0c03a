"""The episode player of a backend, which combines environment pool, prompts and episode code.

The distributed backend has one inside each rollout actor, the local backend has one in its process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from agent_envs import TextEnv, registry
from agent_envs.base import PromptTemplate
from agent_envs.workers import RESET_TIMEOUT_S, STEP_TIMEOUT_S, EnvPool
from openrlhf_gagpo.rollout.answers import Golden, GoldenAnswers
from openrlhf_gagpo.rollout.episode import play_all
from openrlhf_gagpo.rollout.pools import EnvironmentPool
from openrlhf_gagpo.rollout.prompt import ChatTemplate, PromptBuilder
from openrlhf_gagpo.rollout.retrace import retrace
from openrlhf_gagpo.rollout.transcript import Overflow, TranscriptBuilder
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, Place, Policy, SamplingParams

__all__ = [
    "Context",
    "EpisodePlayer",
    "Placement",
    "RolloutSettings",
    "local_pool",
    "prompt_builder",
    "stop_names",
    "tag_names",
]

Context = Literal["window", "transcript"]
"""How an episode's turns become prompts: each worded anew with a window of history, or one growing conversation."""
Placement = Literal["local", "ray"]
"""Where environment processes are: beside the sampler, or on nodes of the Ray cluster."""


@dataclass(frozen=True)
class RolloutSettings:
    """The settings of how episodes are played, which do not change during a run."""

    env_name: str
    env_options: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    workers: int = 1
    placement: Placement = "local"
    """Of the distributed backend's workers; everything else plays with local ones."""
    reset_timeout: float = RESET_TIMEOUT_S
    step_timeout: float = STEP_TIMEOUT_S
    concurrency: int = 256
    history_length: int = 2
    think: bool = True
    action_tags: bool = True
    list_actions: bool = True
    chat_template: ChatTemplate = "auto"
    max_prompt_tokens: int = 2048
    context: Context = "window"
    golden_answers: Golden = "none"
    """Golden answers that episodes get in tokens, see ``Episode.answers``."""
    transcript_overflow: Overflow = "end"
    """What happens to a transcript at ``max_prompt_tokens``; see ``TranscriptBuilder``."""


def prompt_builder(settings: RolloutSettings, tokenizer: Any, template: PromptTemplate | None = None) -> PromptBuilder:
    """Build the prompt builder of a run.

    Args:
        template: the environment's; without one it is looked up, for which an instance is made only if it varies.
    """
    if template is None:
        _load_plugins(settings)
        template = registry.prompt(settings.env_name, settings.env_options)
    arguments: dict[str, Any] = {
        "think": settings.think,
        "action_tags": settings.action_tags,
        "list_actions": settings.list_actions,
        "chat_template": settings.chat_template,
        "max_prompt_tokens": settings.max_prompt_tokens,
    }
    if settings.context == "transcript":
        return TranscriptBuilder(template, tokenizer, overflow=settings.transcript_overflow, **arguments)
    return PromptBuilder(template, tokenizer, history_length=settings.history_length, **arguments)


def local_pool(settings: RolloutSettings) -> EnvPool:
    """Return a pool of environment processes of this process, which start when they are needed."""
    return EnvPool(
        settings.env_name,
        settings.env_options,
        settings.workers,
        plugins=settings.plugins,
        reset_timeout=settings.reset_timeout,
        step_timeout=settings.step_timeout,
    )


def stop_names(settings: RolloutSettings) -> tuple[str, ...]:
    """Return the names of the tags that end a response as soon as they are closed; empty if none does.

    In a transcript, what follows an action would stay in the conversation. With several kinds of tags the first action
    counts, so that nothing after it matters. A windowed prompt with one kind needs no such end: there the last action
    counts, and the prompt shows only what was done.
    """
    names = tag_names(settings)
    stops = settings.action_tags and (settings.context == "transcript" or len(names) > 1)
    return names if stops else ()


def tag_names(settings: RolloutSettings) -> tuple[str, ...]:
    """Return the names of the tags around an action in the run's environment."""
    _load_plugins(settings)
    return registry.get(settings.env_name).action_tags


def _load_plugins(settings: RolloutSettings) -> None:
    for plugin in settings.plugins:
        registry.load_plugin(plugin)


class EpisodePlayer:
    """Owns the environment workers and plays episodes with any policy.

    Args:
        pool: the workers; None for local ones.
    """

    def __init__(self, settings: RolloutSettings, tokenizer: Any, pool: EnvironmentPool | None = None) -> None:
        self.settings = settings
        self._prompts = prompt_builder(settings, tokenizer)
        self._tag_names = tag_names(settings)
        self._decode = _decoder(tokenizer)
        self._stop = stop_names(settings)
        golden = settings.golden_answers
        self._answers = None if golden == "none" else GoldenAnswers(self._prompts, every=golden == "all")
        self._pool: EnvironmentPool = local_pool(settings) if pool is None else pool
        # Shared by all calls of ``play``, which may overlap.
        self._slots = asyncio.Semaphore(settings.concurrency)

    async def play(
        self,
        requests: Sequence[EpisodeRequest],
        policy: Policy,
        sampling: SamplingParams,
        on_done: Callable[[Episode], None] | None = None,
    ) -> list[Episode]:
        """Play all requests concurrently and return the episodes in request order."""
        return await play_all(
            requests,
            self._pool.open,
            policy,
            self._prompts,
            sampling=sampling,
            decode=self._decode,
            think=self.settings.think,
            action_tags=self.settings.action_tags,
            tag_names=self._tag_names,
            stop=self._stop,
            answers=self._answers,
            concurrency=self._slots,
            on_done=on_done,
        )

    async def can_retrace(self) -> bool:
        """Return whether the environment takes snapshots."""
        return await self._pool.inspect(_can_snapshot)

    async def retrace(self, episode: Episode, wanted: Collection[int]) -> dict[int, Place]:
        """Return the places before the ``wanted`` steps of a recorded episode; see ``rollout.retrace.retrace``."""
        session = await self._pool.open()
        try:
            return await retrace(episode, wanted, session)
        finally:
            await session.close()

    def stats(self) -> dict[str, float]:
        """Return the counters of the environment workers as ``env/*`` metrics."""
        return {f"env/{name}": float(value) for name, value in self._pool.stats().items()}

    async def aclose(self) -> None:
        """Stop the environment workers."""
        await self._pool.aclose()


def _can_snapshot(make: Callable[[], TextEnv]) -> bool:
    env = make()
    try:
        return env.can_snapshot
    finally:
        env.close()


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    # Short answers come again and again; decoding one takes as long as a dozen look-ups.
    @lru_cache(maxsize=1024)
    def known(token_ids: tuple[int, ...]) -> str:
        return tokenizer.decode(list(token_ids), skip_special_tokens=True)

    return lambda token_ids: known(tuple(token_ids))
