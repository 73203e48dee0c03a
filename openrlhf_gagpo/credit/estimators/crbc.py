"""CRBC, Cross-Rollout Bellman Closure: actions compared by values that solve the Bellman equation of their group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.graph import bellman_values, edges, succeeded
from openrlhf_gagpo.credit.options import EstimatorOptions, LoneStates, option
from openrlhf_gagpo.credit.penalty import step_penalty
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, group_statistics
from openrlhf_gagpo.credit.sets import Floats
from openrlhf_gagpo.credit.statistics import centred, standardised, statistics_of
from openrlhf_gagpo.options import declare

__all__ = ["CrbcOptions", "crbc"]


@dataclass(frozen=True)
class CrbcOptions(EstimatorOptions):
    """Options of CRBC; the defaults are the paper's, ``edge`` next_state and ``value_of`` reward are ours."""

    gamma: float = option("gamma", 0.98)
    edge: str = declare(
        "action",
        "which steps from one state share a Q value: those with the same action, or those with the same next state",
        choices=("action", "next_state"),
    )
    value_of: str = declare(
        "outcome",
        "what values predict: outcome = discounted success, 1 or 0; reward = discounted rewards less penalties",
        choices=("outcome", "reward"),
    )
    std_floor: float = declare(
        0.1,
        "smallest deviation of a state's Q values to divide by; with value_of reward in units of goal_reward",
        range=(0.0, float("inf")),
    )
    goal_reward: float = option("goal_reward", 10.0)
    success_above: float = option("success_above", 0.0)
    step_coef: float = option("step_coef", 5.0)
    episode_coef: float = option("episode_coef", 1.0)

    @property
    def lone_states(self) -> LoneStates | None:
        if self.step_coef == 0.0:
            return None
        return LoneStates("the episode's advantage" if self.episode_coef else "")


@register("crbc", CrbcOptions, BASELINE_PRESETS)
def crbc(batch: StepBatch, options: CrbcOptions) -> CreditResult:
    """Compute ``A^E + w A^S`` with GRPO's A^E and ``A^S = (Q - V) / max(sigma, floor)``.

    V(s) is the mean of ``gamma V(s_{t+1})`` over all visits of s, with 1 after a success and 0 after a failure, to
    which a truncated episode without success counts. Q is the mean of the same over the visits with the step's action,
    and sigma the deviation of Q over all visits. A state in which only one action was taken has ``A^S = 0``.
    (Ren et al., Cross-Rollout Bellman Closure, 2026.)
    """
    rewards, end_value, unit = _outcomes(batch, options)
    value = bellman_values(batch, rewards, end_value, options.gamma)
    led_to = rewards + options.gamma * batch.trajectories.following(value, end_value)
    choices = edges(batch, options.edge)
    quality = choices.expand(choices.mean(led_to))
    scores = episode_scores(batch, options)
    episode_advantage = standardised(scores, batch.groups, group_statistics(batch, scores, options))
    step_advantage = _floored(batch, quality, options.std_floor * unit)
    return CreditResult.of(
        batch,
        options,
        advantage=options.episode_coef * episode_advantage + options.step_coef * step_advantage,
        return_=quality,
        value=value,
        td_residual=led_to - value,
    )


def _outcomes(batch: StepBatch, options: CrbcOptions) -> tuple[Floats, Floats, float]:
    """Return what values sum up: a reward per row, the value after each trajectory, and the unit of both."""
    if options.value_of == "outcome":
        return np.zeros(len(batch)), succeeded(batch, options.success_above).astype(np.float64), 1.0
    return batch.reward - step_penalty(batch, options), np.zeros(len(batch.final_state)), options.goal_reward


def _floored(batch: StepBatch, quality: Floats, floor: float) -> Floats:
    """Return Q - V over the larger of ``floor`` and Q's population deviation over the visits of a state.

    V is the mean of Q over the visits. 0 without spread, as everywhere, so that rounding noise is never enlarged.
    """
    visits = statistics_of(quality, batch.states, ddof=0)
    scale = np.where(visits.noise > 0.0, 1.0, np.maximum(visits.std, floor))
    floored: Floats = centred(quality, batch.states, visits) / batch.states.expand(scale)
    return floored
