"""Places in a recorded episode at which others can begin, found by taking its actions again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

from agent_envs.base import Reset, StepResult
from openrlhf_gagpo.errors import RolloutError
from openrlhf_gagpo.rollout.contract import sound_reset, sound_step
from openrlhf_gagpo.rollout.types import Completion, Episode, Exchange, FinishReason, HistoryEntry, Place, Prompt, Step

__all__ = ["TracedSession", "retrace"]


class TracedSession(Protocol):
    """An environment session that gives its state away, such as one of ``agent_envs.workers``."""

    async def reset(self, task: str, seed: int) -> Reset: ...

    async def step(self, action: str) -> StepResult: ...

    async def snapshot(self) -> object: ...


async def retrace(episode: Episode, wanted: Collection[int], session: TracedSession) -> dict[int, Place]:
    """Take the actions of ``episode`` again, and return the places before the ``wanted`` steps.

    The number of steps taken names the place after the last of them. A place at which the environment has ended the
    episode is left out.

    Raises:
        RolloutError: the environment shows or pays something else than was recorded.
        EnvError, TimeoutError: the environment failed, or it takes no snapshots.
    """
    start = sound_reset(await session.reset(episode.task, episode.env_seed))
    history: list[HistoryEntry] = []
    previous: Exchange | None = None
    now: Reset | StepResult = start
    places: dict[int, Place] = {}
    last = max(wanted, default=0)
    for index in range(last + 1):
        if index in wanted:
            places[index] = Place(await session.snapshot(), _as_start(start, now), tuple(history), previous)
        if index in (last, len(episode.steps)):
            break
        step = episode.steps[index]
        result = sound_step(await session.step(step.action))
        _check_same(episode, step, now, result)
        if result.terminated or result.truncated:
            break
        history.append(HistoryEntry(index, step.observation, step.action, step.response))
        previous = _exchange(step)
        now = result
    return places


def _exchange(step: Step) -> Exchange:
    """Return a recorded turn as far as its record says: without the words of its prompt."""
    prompt = Prompt(step.prompt_ids, "", [], step.history_dropped, step.sequence)
    finished: FinishReason = "length" if step.finish_reason == "length" else "stop"
    return Exchange(prompt, Completion(step.response_ids, step.sampling_log_probs, finished), step.response)


def _as_start(start: Reset, now: Reset | StepResult) -> Reset:
    return replace(
        start, observation=now.observation, state_key=now.state_key, admissible_actions=now.admissible_actions
    )


def _check_same(episode: Episode, step: Step, before: Reset | StepResult, after: StepResult) -> None:
    again = (before.observation, before.state_key, after.state_key, after.reward, after.terminated)
    recorded = (step.observation, step.state_key, step.next_state_key, step.reward, step.terminated)
    if again != recorded:
        raise RolloutError(
            f"step {step.index} of {episode.trajectory} does not happen again as it was recorded; the environment, its "
            "options and its data must be those that played"
        )
