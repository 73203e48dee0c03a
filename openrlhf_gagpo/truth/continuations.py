"""Estimates of a policy's values: what it earns when recorded episodes are played on from where they were."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.sets import Ints
from openrlhf_gagpo.errors import ConfigError, RunError
from openrlhf_gagpo.rollout.player import EpisodePlayer
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, Place, Step
from openrlhf_gagpo.seeds import stable_seed
from openrlhf_gagpo.truth.played import Played

__all__ = ["Budget", "Estimate", "Outcome", "Play", "draw", "play_on"]

Play = Callable[[Sequence[EpisodeRequest]], Awaitable[list[Episode]]]
"""Plays episodes with the policy whose values are wanted."""


@dataclass(frozen=True)
class Budget:
    """How much is played for an estimate."""

    states: int
    """Recorded steps at which it is made."""
    continuations: int
    """Episodes from the state of each, and from the state after its action; 2 or more."""
    seed: int


@dataclass(frozen=True)
class Estimate:
    """A mean over continuations with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Outcome:
    """What the continuations around one recorded step earned: for each, its rewards in order."""

    reward: float
    """Reward of the recorded action."""
    before: Sequence[Sequence[float]]
    """From the state in which it was taken."""
    after: Sequence[Sequence[float]]
    """From the state to which it led; none if it ended the episode."""

    def state_value(self, gamma: float) -> Estimate:
        """Return V: the mean discounted return from the state."""
        return _mean(self.before, gamma)

    def action_value(self, gamma: float) -> Estimate:
        """Return Q of the recorded action: its reward and the discounted value of where it led."""
        following = _mean(self.after, gamma) if self.after else Estimate(0.0, 0.0)
        return Estimate(self.reward + gamma * following.value, gamma * following.error)

    def advantage(self, gamma: float) -> Estimate:
        """Return Q - V. Both come from different continuations, so that the squares of their errors add up."""
        taken, here = self.action_value(gamma), self.state_value(gamma)
        return Estimate(taken.value - here.value, float(np.hypot(taken.error, here.error)))


def draw(candidates: Ints, count: int, seed: int) -> Ints:
    """Draw ``count`` of the candidates, one from each of as many equal stretches; all if there are not more."""
    rng = np.random.default_rng(seed)
    stretches = np.array_split(candidates, min(count, len(candidates)))
    return np.array([rng.choice(stretch) for stretch in stretches], dtype=np.int64)


async def play_on(player: EpisodePlayer, play: Play, played: Played, rows: Ints, budget: Budget) -> list[Outcome]:
    """Play from the state of every chosen step, and from the state after it, as often as the budget says.

    Args:
        player: takes recorded actions again, to find the states.
        rows: chosen steps of ``played``.

    Raises:
        ConfigError: episodes or prompts are not what was recorded.
        RunError: the environment or the policy failed in a continuation.
        EnvError, TimeoutError: the environment failed on the way to a state.
    """
    chosen = [(played.episodes[row], played.steps[row]) for row in rows]
    wanted: dict[int, tuple[Episode, set[int]]] = {}
    for episode, step in chosen:
        wanted.setdefault(id(episode), (episode, set()))[1].update((step.index, step.index + 1))
    places = {key: await player.retrace(episode, indices) for key, (episode, indices) in wanted.items()}
    asked = [
        [
            _requests(episode, places[id(episode)].get(step.index + taken), f"{step.index}.{taken}", budget)
            for taken in (0, 1)
        ]
        for episode, step in chosen
    ]
    done = iter(await play([request for sides in asked for side in sides for request in side]))
    outcomes = []
    for (episode, step), sides in zip(chosen, asked, strict=True):
        before, after = ([_sound(next(done)) for _ in side] for side in sides)
        _check_prompt(episode, step, before)
        outcomes.append(
            Outcome(step.reward, [_rewards(found) for found in before], [_rewards(found) for found in after])
        )
    return outcomes


def _requests(episode: Episode, place: Place | None, name: str, budget: Budget) -> list[EpisodeRequest]:
    """Return requests for continuations from a place; none if the episode has ended there."""
    if place is None:
        return []
    group, names = episode.group, [f"{episode.trajectory}.{name}.{number}" for number in range(budget.continuations)]
    return [
        EpisodeRequest(episode.task, group, name, episode.env_seed, stable_seed(budget.seed, group, name), place)
        for name in names
    ]


def _sound(episode: Episode) -> Episode:
    if episode.faulted:
        raise RunError(
            f"a continuation in task {episode.task} failed: {episode.error.rstrip('.')}; mend the environment, or draw "
            "other states with --seed"
        )
    return episode


def _rewards(episode: Episode) -> list[float]:
    return [step.reward for step in episode.steps]


def _check_prompt(episode: Episode, step: Step, before: Sequence[Episode]) -> None:
    """Refuse continuations that do not begin with what the policy was shown in the recorded episode."""
    if any(found.steps and found.steps[0].prompt_ids != step.prompt_ids for found in before):
        raise ConfigError(
            f"the prompt of step {step.index} of {episode.trajectory} is not the recorded one; tokenizer and wording "
            "of prompts must be those that played"
        )


def _mean(rewards: Sequence[Sequence[float]], gamma: float) -> Estimate:
    returns = np.array([sum(gamma**time * reward for time, reward in enumerate(one)) for one in rewards])
    return Estimate(float(returns.mean()), float(returns.std(ddof=1) / np.sqrt(len(returns))))
