"""GAGPO (arXiv 2605.13217): group-averaged state values as a critic-free baseline for GAE over environment steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.graph import bellman_values, passed_through
from openrlhf_gagpo.credit.options import EstimatorOptions, LoneStates, option
from openrlhf_gagpo.credit.penalty import step_penalty
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import group_statistics, kept_rows, step_returns, totals
from openrlhf_gagpo.credit.sets import Floats, Sets
from openrlhf_gagpo.credit.statistics import standardised, statistics_of
from openrlhf_gagpo.losses import gspo
from openrlhf_gagpo.options import declare

__all__ = ["PRESETS", "GagpoOptions", "gagpo"]

PRESETS: Mapping[str, object] = {**BASELINE_PRESETS, "actor.policy_loss_type": gspo.NAME}
"""Run-level settings: those of the baselines, with one importance ratio per action."""


@dataclass(frozen=True)
class GagpoOptions(EstimatorOptions):
    """Options of GAGPO; defaults are the paper's settings, other values are its ablations and two refinements."""

    gamma: float = option("gamma", 0.95)
    lambd: float = option("lambd", 0.8)
    normalize: str = declare(
        "group",
        "set of steps whose mean and standard deviation normalise the advantages",
        choices=("group", "batch", "none"),
    )
    ddof: int = declare(1, "1 = unbiased standard deviation, 0 = population standard deviation", choices=(0, 1))
    monte_carlo: bool = declare(False, "use return minus group state value instead of the lambda sum of TD residuals")
    truncation: str = declare(
        "terminal",
        "value after a truncated last step: terminal = 0, bootstrap = that of its final state if visited",
        choices=("terminal", "bootstrap"),
    )
    singleton: str = declare(
        "paper",
        "value of a state visited once in its group: paper = its own return; passthrough = reward plus discounted "
        "next value, so its TD residual is 0",
        choices=("paper", "passthrough"),
    )
    value: str = declare(
        "mean_return",
        "value of a state: mean_return = mean return of its visits; bellman = mean over its visits of reward plus "
        "discounted next value, solved for all states of the group at once",
        choices=("mean_return", "bellman"),
    )
    broadcast_coef: float = declare(0.0, "weight of GiGPO's episode advantage, added to every step after normalisation")
    invalid_penalty_mode: str = option("invalid_penalty_mode", "reward")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.monte_carlo and self.truncation == "bootstrap":
            raise ValueError("monte_carlo uses no later value, so truncation cannot be bootstrap; set it to terminal")
        if self.value == "bellman" and self.truncation == "bootstrap":
            raise ValueError(
                "value bellman is 0 after every last step, so truncation cannot be bootstrap; set it to terminal"
            )
        if self.value == "bellman" and self.singleton == "passthrough":
            raise ValueError("value bellman passes through states visited once by itself; leave singleton at paper")

    @property
    def lone_states(self) -> LoneStates | None:
        if self.broadcast_coef:
            return LoneStates("the episode's advantage")
        return LoneStates("", "--algo.advantage.broadcast_coef 1")


@register("gagpo", GagpoOptions, PRESETS)
def gagpo(batch: StepBatch, options: GagpoOptions) -> CreditResult:
    """Compute GAE with the mean return of all visits of a state within one rollout group in place of a critic.

    ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)``, ``A_t = delta_t + gamma lambda A_{t+1}``, V = 0 after the last step,
    then standardised over the steps of the group. All steps of a group whose advantages do not differ get exactly 0.

    With a step's penalty c_t in mode ``reward``, r_t is the reward minus c_t everywhere. In mode ``local`` this holds
    in delta_t only, and V averages R_t - c_t with R_t the return without penalties. V(s_{t+1}) and the lambda sum then
    still carry a penalty to earlier steps, unlike the Monte Carlo form R_t - c_t - V(s_t).

    With ``value`` bellman (ours) V solves ``V(s) = mean of r_t - c_t + gamma V(s_{t+1})`` over the visits of s instead.
    """
    gamma = options.gamma
    rewards = batch.reward - step_penalty(batch, options)
    returns = step_returns(batch, options, gamma)
    value, end_value = _values(batch, rewards, returns, options)
    following = batch.trajectories.following(value, end_value)
    residual = rewards + gamma * following - value
    if options.monte_carlo:
        raw = returns - value
    else:
        raw = batch.trajectories.backward_sum(residual, gamma * options.lambd)
    advantage = _normalised(batch, raw, options)
    if options.broadcast_coef != 0.0:
        advantage = advantage + options.broadcast_coef * _episode_advantage(batch, options)
    return CreditResult.of(batch, options, advantage=advantage, return_=returns, value=value, td_residual=residual)


def _values(batch: StepBatch, rewards: Floats, returns: Floats, options: GagpoOptions) -> tuple[Floats, Floats]:
    """Return V of each row's state, and V after each trajectory's last step."""
    if options.value == "bellman":
        end_value = np.zeros(len(batch.final_state))
        return bellman_values(batch, rewards, end_value, options.gamma), end_value
    state_value = batch.states.mean(returns)
    end_value = _end_values(batch, state_value, options)
    value = batch.states.expand(state_value)
    if options.singleton == "passthrough":
        value = passed_through(batch, rewards, value, end_value, options.gamma)
    return value, end_value


def _end_values(batch: StepBatch, state_value: Floats, options: GagpoOptions) -> Floats:
    """Return the value after each trajectory's last step: 0, or that of the final state of a truncated one.

    A state that was never visited has the value 0.
    """
    if options.truncation == "terminal":
        return np.zeros(len(batch.final_state))
    truncated = batch.truncated[batch.trajectories.is_last]
    return np.where(truncated, state_value[batch.final_state], 0.0)


def _normalised(batch: StepBatch, raw: Floats, options: GagpoOptions) -> Floats:
    """Standardise over each group or over the kept rows of the batch."""
    if options.normalize == "group":
        return standardised(raw, batch.groups, statistics_of(raw, batch.groups, options.ddof))
    if options.normalize == "batch":
        kept = raw[kept_rows(batch, options)]
        return standardised(raw, Sets.whole(len(raw)), statistics_of(kept, Sets.whole(len(kept)), options.ddof))
    return raw


def _episode_advantage(batch: StepBatch, options: GagpoOptions) -> Floats:
    """Return GiGPO's episode term as GiGPO computes it, with scores that never include penalties of other steps."""
    scores = totals(batch, batch.reward) - step_penalty(batch, options)
    return standardised(scores, batch.groups, group_statistics(batch, scores, options))
