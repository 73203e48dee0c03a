"""G2PO: steps compared by the value of what follows, with other visits of their state and with the whole group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, LoneStates, option
from openrlhf_gagpo.credit.penalty import step_penalty
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, group_statistics, totals
from openrlhf_gagpo.credit.sets import Floats
from openrlhf_gagpo.credit.statistics import centred, standardised, statistics_of
from openrlhf_gagpo.options import declare

__all__ = ["G2poOptions", "g2po"]


@dataclass(frozen=True)
class G2poOptions(EstimatorOptions):
    """Options of G2PO; the defaults are its ALFWorld settings except for ``end_value``."""

    gamma: float = option("gamma", 0.95)
    end_value: str = declare(
        "score",
        "value after the last step: score = the episode's score; exact_goal = the score if it is exactly goal_reward, "
        "else 0, as in the released code",
        choices=("score", "exact_goal"),
    )
    goal_reward: float = option("goal_reward", 10.0)
    gigpo_mode: str = option("gigpo_mode", "mean_std_norm")
    step_coef: float = option("step_coef", 1.0)
    episode_coef: float = option("episode_coef", 1.0)

    @property
    def lone_states(self) -> LoneStates | None:
        if self.step_coef == 0.0:
            return None
        return LoneStates("the gain in value and the episode's advantage" if self.episode_coef else "the gain in value")


@register("g2po", G2poOptions, BASELINE_PRESETS)
def g2po(batch: StepBatch, options: G2poOptions) -> CreditResult:
    """Compute ``A^E + A^S`` with GiGPO's A^E, where A^S is the sum of two comparisons.

    V(s) is the mean of ``gamma^k S_i`` over the visits of s, with S_i the score of the visit's episode and k the steps
    from the visit to its end. One comparison is that of the value behind a step, less its penalty, over the visits of
    the state; the other that of the gain ``V(s_{t+1}) - V(s_t)`` over the steps of the group. (arXiv 2606.22995, as in
    the released code.)
    """
    compare = standardised if options.gigpo_mode == "mean_std_norm" else centred
    score = totals(batch, batch.reward)
    steps_left = batch.trajectories.expand(batch.trajectories.count) - batch.step
    discounted = options.gamma**steps_left * score
    value = batch.states.expand(batch.states.mean(discounted))
    behind = batch.trajectories.following(value, _end_values(batch, options))
    led_to = behind - step_penalty(batch, options)
    gain = behind - value
    step_advantage = compare(led_to, batch.states, statistics_of(led_to, batch.states))
    step_advantage += compare(gain, batch.groups, statistics_of(gain, batch.groups))
    scores = episode_scores(batch, options)
    episode_advantage = compare(scores, batch.groups, group_statistics(batch, scores, options))
    return CreditResult.of(
        batch,
        options,
        advantage=options.episode_coef * episode_advantage + options.step_coef * step_advantage,
        return_=discounted,
        value=value,
        td_residual=gain,
    )


def _end_values(batch: StepBatch, options: G2poOptions) -> Floats:
    """Return the value after each trajectory's last step, however it ended."""
    score = batch.trajectories.sum(batch.reward)
    if options.end_value == "exact_goal":
        return np.where(score == options.goal_reward, score, 0.0)
    return score
