"""Playing of the samples of an evaluation: each task several times, each time by an agent with a policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from agent_envs.errors import EnvError
from agent_envs.workers import EnvPool
from openrlhf_gagpo.agents import Agent
from openrlhf_gagpo.errors import PolicyFault, RolloutError, RunError
from openrlhf_gagpo.rollout.player import RolloutSettings, local_pool, stop_names, tag_names
from openrlhf_gagpo.rollout.prompt import PromptBuilder
from openrlhf_gagpo.rollout.table import Table
from openrlhf_gagpo.rollout.types import (
    Completion,
    EndReason,
    Episode,
    EpisodeRequest,
    Policy,
    Prompt,
    SamplingParams,
    Usage,
)
from openrlhf_gagpo.rollout.watched import WatchedSession

__all__ = ["Kit", "Sample", "Source", "play_samples"]

_FEW = 10
"""Samples in a row that may fail at the policy, if no more are played at a time."""


class Source(Protocol):
    """A policy that is ready to play any number of episodes."""

    tokenizer: Any

    def seat(self, session: WatchedSession) -> Policy:
        """Return the policy of one episode, which is played in ``session``."""
        ...

    def done(self) -> None:
        """Note that an episode has ended."""
        ...


@dataclass(frozen=True)
class Sample:
    """One task, played once by an agent."""

    trials: list[Episode]
    """In order, never empty; an agent without several trials has one."""
    usage: Usage
    seconds: float

    @property
    def episode(self) -> Episode:
        """The trial that counts: the last one."""
        return self.trials[-1]

    @property
    def identity(self) -> str:
        """The name of the sample in its evaluation."""
        return self.trials[0].trajectory


@dataclass(frozen=True)
class Kit:
    """Everything that the samples of an evaluation are played with."""

    agent: Agent
    source: Source
    prompts: PromptBuilder
    settings: RolloutSettings
    sampling: SamplingParams


async def play_samples(requests: Sequence[EpisodeRequest], kit: Kit, on_done: Callable[[Sample], None]) -> None:
    """Play every request, at most ``kit.settings.concurrency`` at a time, and start them in their order.

    A failure of the environment or of the policy ends one sample, which ``on_done`` gets like any other.

    Raises:
        RunError: the policy gave no answer in so many samples in a row that nothing else is to be expected, or it
            refuses every request.
        RolloutError: a sample failed for another reason; the cause is chained.
    """
    settings = kit.settings
    pool = local_pool(settings)
    slots = asyncio.Semaphore(settings.concurrency)
    patience = _Patience(max(_FEW, settings.concurrency))

    async def run(request: EpisodeRequest) -> None:
        async with slots:
            try:
                sample = await _play(request, kit, pool)
                on_done(sample)
            except RunError:
                raise
            except Exception as error:
                raise RolloutError(
                    f"task {request.task!r} ({request.trajectory}) failed: {type(error).__name__}: {error}"
                ) from error
            finally:
                # May generate for the other episodes at once, so this one has to be safe on disk by now.
                kit.source.done()
            patience.see(sample.episode)

    try:
        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(run(request))
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    finally:
        await pool.aclose()


async def _play(request: EpisodeRequest, kit: Kit, pool: EnvPool) -> Sample:
    started = perf_counter()
    usage = Usage()
    try:
        session = WatchedSession(await pool.open())
    except (EnvError, TimeoutError) as fault:
        trials = [_unplayed(request, "env_fault", fault)]
    else:
        policy = _Metered(kit.source.seat(session))
        try:
            trials = await kit.agent.play(_table(request, kit, session, policy))
        except PolicyFault as fault:
            trials = [_unplayed(request, "policy_fault", fault)]
        finally:
            # The sample has ended by now, so a failure to close does not affect it.
            with suppress(EnvError, TimeoutError):
                await session.close()
        usage = policy.usage
    return Sample(trials, usage, perf_counter() - started)


def _table(request: EpisodeRequest, kit: Kit, session: WatchedSession, policy: Policy) -> Table:
    return Table(
        request,
        session,
        policy,
        kit.prompts,
        kit.sampling,
        lambda ids: str(kit.source.tokenizer.decode(ids, skip_special_tokens=True)),
        kit.settings.think,
        kit.settings.action_tags,
        tag_names(kit.settings),
        stop_names(kit.settings),
    )


def _unplayed(request: EpisodeRequest, reason: EndReason, fault: Exception) -> Episode:
    episode = Episode(request.task, request.group, request.trajectory, request.env_seed, [], reason)
    episode.error = f"{type(fault).__name__}: {fault}"
    return episode


class _Metered:
    """Adds up what a policy's answers cost."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.usage = Usage()

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        try:
            completion = await self._policy.generate(prompt, params)
        except PolicyFault as fault:
            self.usage += Usage(fault.requests)
            raise
        self.usage += completion.usage or Usage(1, len(prompt.token_ids), len(completion.token_ids))
        return completion


class _Patience:
    """Counts the samples in a row that the policy did not answer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._streak = 0

    def see(self, episode: Episode) -> None:
        """Raise ``RunError`` if too many samples in a row had no answer."""
        self._streak = self._streak + 1 if episode.end_reason == "policy_fault" else 0
        if self._streak >= self._limit:
            raise RunError(
                f"the policy gave no answer in {self._streak} samples in a row, at last because {episode.error}; run "
                "the same command with --retry_faulted when it works again"
            )
