"""Playing of episodes, each of which waits only for its own generations and environment steps."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from typing import Protocol

from agent_envs.base import EnvError, Reset, StepResult
from agent_envs.workers import EnvFault, ServerLost
from openrlhf_gagpo.errors import PolicyFault, PromptTooLong, RolloutError
from openrlhf_gagpo.rollout.answers import GoldenAnswers
from openrlhf_gagpo.rollout.contract import sound_reset, sound_step
from openrlhf_gagpo.rollout.parse import ACTION_TAGS, parse_action
from openrlhf_gagpo.rollout.prompt import TurnPrompts
from openrlhf_gagpo.rollout.stopping import StopRule
from openrlhf_gagpo.rollout.types import (
    Completion,
    Episode,
    EpisodeRequest,
    Exchange,
    HistoryEntry,
    Message,
    Policy,
    Prompt,
    SamplingParams,
    Step,
)

__all__ = ["EnvSession", "play_all", "play_episode", "turn_seed", "unplayed"]

logger = logging.getLogger(__name__)

# Failures of an environment that do not end the run.
_ENV_FAULTS = (EnvError, TimeoutError)

REPLAYS = 3
"""How often an episode is played again that was lost with all environments; more losses have a cause that stays."""


class EnvSession(Protocol):
    """One environment instance lent to one episode at a time. Failures are ``EnvError`` or ``TimeoutError``."""

    async def reset(self, task: str, seed: int) -> Reset: ...

    async def restore(self, state: object) -> None: ...

    async def step(self, action: str) -> StepResult: ...

    async def close(self) -> None: ...


def turn_seed(sampling_seed: int | None, step: int) -> int | None:
    """Return the generation seed of turn ``step``: 63 bits of blake2b over both numbers, or None without a seed."""
    if sampling_seed is None:
        return None
    digest = hashlib.blake2b(f"{sampling_seed}:{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


async def play_episode(
    request: EpisodeRequest,
    session: EnvSession,
    policy: Policy,
    prompts: TurnPrompts,
    *,
    sampling: SamplingParams,
    decode: Callable[[Sequence[int]], str],
    think: bool,
    action_tags: bool,
    tag_names: Sequence[str] = ACTION_TAGS,
    stop: Sequence[str] = (),
    answers: GoldenAnswers | None = None,
) -> Episode:
    """Play one episode from its beginning to its end; the session stays open.

    It begins with a reset or, if the request names a place in another episode, there. Its steps are then those from the
    place on, with indices and prompts as if it had been played from the start.

    It ends in one of these ways (``Episode.end_reason``):

    * "terminated" / "truncated": as the environment reported with its last step;
    * "prompt_too_long": the next prompt does not fit even without history. The last step becomes truncated and keeps
      the environment's reward and next state. If it is the first prompt, the episode has no steps; since the
      environment did nothing wrong, it counts as failed. ``Episode.error`` holds the numbers;
    * "env_fault": ``EnvError`` or ``TimeoutError`` from the environment, or an answer that breaks its contract (see
      ``rollout.contract``). The step in which it happened is not recorded. ``ServerLost`` is raised instead;
    * "policy_fault": ``PolicyFault`` from the policy. If it says that the prompt exceeds the model's context, the
      episode ends as with "prompt_too_long" instead.

    In every step, ``observation`` is the text that the policy saw and ``state_key`` the state in which it acted.
    ``Episode.extra`` holds "final_observation", and "instruction" if the environment gives one.

    Args:
        request: identity, task and seeds.
        session: an open environment session.
        policy: samples the responses.
        prompts: words the prompts; its ``think`` and ``action_tags`` should equal those below.
        sampling: how to sample; its ``seed`` is replaced by ``turn_seed(request.sampling_seed, step)``, its ``stop`` by
            the rule of the turn.
        decode: turns response token ids into text without special tokens.
        think: whether the response must think before it acts.
        action_tags: whether the response must put its action in tags.
        tag_names: names of these tags, ``TextEnv.action_tags``.
        stop: names of the tags that end a response (see ``rollout.stopping``); empty if an action in tags does not.
        answers: encodes the golden answers, for ``Episode.answers``; None leaves them out.

    Raises:
        ServerLost: all environments were lost, whatever this episode did, so that it can be played again.
        RolloutError: the policy broke its interface (no tokens, or not one log-probability per token).
        Exception: any exception of the policy, the tokenizer or the template.
    """
    episode = Episode(request.task, request.group, request.trajectory, request.env_seed, [], "env_fault")
    try:
        started = perf_counter()
        try:
            start = await _begin(request, session)
        finally:
            episode.environment_s += perf_counter() - started
    except ServerLost:
        raise
    except _ENV_FAULTS as fault:
        _note_fault(episode, fault)
        return episode
    episode.category = start.category
    episode.info = dict(start.info)
    episode.extra["final_observation"] = start.observation
    if start.task:
        episode.extra["instruction"] = start.task

    history = [] if request.place is None else list(request.place.history)
    previous = None if request.place is None else request.place.previous
    now: Reset | StepResult = start
    while True:
        index = len(history)
        try:
            prompt = prompts.build(start.task, history, now.observation, now.admissible_actions, index, previous)
        except PromptTooLong as error:
            _note_too_long(episode, error)
            return episode

        started = perf_counter()
        seed = turn_seed(request.sampling_seed, index)
        thinking_opened = prompt.text.rstrip().endswith("<think>")
        if answers is not None and not episode.steps:
            episode.answers = answers.encode(start.info, thinking_opened=thinking_opened)
        rule = StopRule(tuple(stop), decode, thinking_opened) if stop else None
        try:
            completion = await policy.generate(prompt, replace(sampling, seed=seed, stop=rule))
        except PolicyFault as fault:
            if fault.too_long:
                _note_too_long(episode, fault)
            else:
                episode.error, episode.end_reason = str(fault), "policy_fault"
            return episode
        finally:
            episode.generation_s += perf_counter() - started
        _check_completion(completion)
        if completion.usage is not None:
            episode.cached_tokens = (episode.cached_tokens or 0) + completion.usage.cached_tokens
        response = decode(completion.token_ids) if completion.text is None else completion.text
        parsed = parse_action(
            response,
            think=think,
            action_tags=action_tags,
            thinking_opened=thinking_opened,
            finish_reason=completion.finish_reason,
            tag_names=tag_names,
        )

        try:
            started = perf_counter()
            try:
                outcome = await session.step(parsed.action)
            finally:
                episode.environment_s += perf_counter() - started
            result = sound_step(outcome)
        except ServerLost:
            raise
        except _ENV_FAULTS as fault:
            _note_fault(episode, fault)
            return episode

        episode.steps.append(
            Step(
                index=index,
                state_key=now.state_key,
                next_state_key=result.state_key,
                observation=now.observation,
                action=parsed.action,
                reward=result.reward,
                terminated=result.terminated,
                truncated=result.truncated,
                format_valid=parsed.format_valid,
                admissible=result.admissible,
                prompt_ids=prompt.token_ids if completion.prompt_form == "tokens" else [],
                response_ids=completion.token_ids,
                sampling_log_probs=completion.log_probs,
                response=response,
                finish_reason=completion.finish_reason,
                history_dropped=prompt.history_dropped,
                info=dict(result.info),
                sequence=index if prompt.sequence is None else prompt.sequence,
                messages=_messages_read(prompt, completion),
                sampled_by=completion.sampled_by,
            )
        )
        episode.success, episode.score = result.success, result.score
        episode.extra["final_observation"] = result.observation
        history.append(HistoryEntry(index, now.observation, parsed.action, response))
        previous = Exchange(prompt, completion, response)
        if result.terminated or result.truncated:
            episode.end_reason = "terminated" if result.terminated else "truncated"
            if episode.answers and result.truncated:
                with suppress(PromptTooLong):
                    episode.final_prompt_ids = prompts.build(
                        start.task, history, result.observation, result.admissible_actions, index + 1, previous
                    ).token_ids
            return episode
        now = result


async def play_all(
    requests: Sequence[EpisodeRequest],
    open_session: Callable[[], Awaitable[EnvSession]],
    policy: Policy,
    prompts: TurnPrompts,
    *,
    sampling: SamplingParams,
    decode: Callable[[Sequence[int]], str],
    think: bool,
    action_tags: bool,
    tag_names: Sequence[str] = ACTION_TAGS,
    stop: Sequence[str] = (),
    answers: GoldenAnswers | None = None,
    concurrency: int | asyncio.Semaphore,
    on_done: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Play all requests, at most ``concurrency`` at a time, each in its own session; return results in request order.

    A semaphore given as ``concurrency`` limits all calls that share it together.

    An episode whose environment was lost with all others (``ServerLost``) is played again from its beginning in another
    session, with the same seeds, at most ``REPLAYS`` times; after that it is a fault. If the environment prevents a
    session from opening for another reason, its episode is a fault.

    ``on_done`` is called once with every episode as it ends, including faulted ones. Sessions are closed in every case,
    even after cancellation. The other arguments are those of ``play_episode``.

    Raises:
        RolloutError: an episode, or ``on_done``, raised something other than an environment fault. The first such
            error is raised after all other episodes have been cancelled and their sessions closed.
        ValueError: ``concurrency`` is below 1, or two requests share group and trajectory.
    """
    if isinstance(concurrency, int) and concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}: use 1 or more")
    identities = {(request.group, request.trajectory) for request in requests}
    if len(identities) < len(requests):
        raise ValueError("two episode requests share their group and trajectory: give every request its own trajectory")
    slots = asyncio.Semaphore(concurrency) if isinstance(concurrency, int) else concurrency

    async def play_once(request: EpisodeRequest) -> Episode:
        try:
            session = await open_session()
        except ServerLost:
            raise
        except _ENV_FAULTS as fault:
            return unplayed(request, fault)
        try:
            return await play_episode(
                request,
                session,
                policy,
                prompts,
                sampling=sampling,
                decode=decode,
                think=think,
                action_tags=action_tags,
                tag_names=tag_names,
                stop=stop,
                answers=answers,
            )
        finally:
            await _close(session, request)

    async def play(request: EpisodeRequest) -> Episode:
        for _ in range(REPLAYS):
            with suppress(ServerLost):
                return await play_once(request)
        try:
            return await play_once(request)
        except ServerLost as lost:
            return unplayed(request, lost)

    async def run(request: EpisodeRequest) -> Episode:
        async with slots:
            try:
                episode = await play(request)
                if on_done is not None:
                    on_done(episode)
            except Exception as error:
                raise RolloutError(
                    f"episode {request.trajectory!r} of task {request.task!r} failed: {_describe(error)}"
                ) from error
        return episode

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(request)) for request in requests]
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]


def unplayed(request: EpisodeRequest, fault: BaseException) -> Episode:
    """Return the episode of a request that could not be played because of its environment."""
    episode = Episode(request.task, request.group, request.trajectory, request.env_seed, [], "env_fault")
    _note_fault(episode, fault)
    return episode


async def _begin(request: EpisodeRequest, session: EnvSession) -> Reset:
    """Bring the session to where the episode begins, and return what the environment shows there."""
    if request.place is None:
        return sound_reset(await session.reset(request.task, request.env_seed))
    await session.restore(request.place.state)
    return request.place.shown


async def _close(session: EnvSession, request: EpisodeRequest) -> None:
    try:
        await session.close()
    except _ENV_FAULTS as fault:
        # The episode has ended by now, so this failure does not affect it.
        logger.warning("closing the environment of episode %r failed: %s", request.trajectory, _describe(fault))


def _note_too_long(episode: Episode, error: PromptTooLong | PolicyFault) -> None:
    episode.error = str(error)
    episode.end_reason = "prompt_too_long"
    if episode.steps:
        episode.steps[-1].truncated = True


def _note_fault(episode: Episode, fault: BaseException) -> None:
    episode.error = _describe(fault)
    if isinstance(fault, EnvFault) and fault.details:
        episode.traceback = fault.details
        episode.fault = hashlib.blake2b(_kind(fault.details).encode(), digest_size=6).hexdigest()


def _kind(traceback: str) -> str:
    """Return what two failures of one kind have in common: the frames and the type of the error, not its message."""
    lines = traceback.rstrip().splitlines()
    return "\n".join([*(line for line in lines if line.startswith("  File ")), lines[-1].partition(":")[0]])


def _check_completion(completion: Completion) -> None:
    if completion.text is not None and not completion.token_ids:
        return
    tokens, log_probs = len(completion.token_ids), len(completion.log_probs)
    if tokens == 0:
        raise RolloutError("the policy sampled no token: it must return at least one")
    if tokens != log_probs:
        raise RolloutError(f"the policy returned {tokens} tokens but {log_probs} log-probabilities: it must match them")


def _messages_read(prompt: Prompt, completion: Completion) -> list[Message]:
    if completion.prompt_form == "messages":
        return prompt.messages
    return [Message(role="user", content=prompt.text)] if completion.prompt_form == "text" else []


def _describe(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
