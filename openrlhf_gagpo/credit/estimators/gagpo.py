"""GAGPO (arXiv 2605.13217): group-averaged state values as a critic-free baseline for GAE over environment steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, option
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import (
    BASELINE_DEFAULTS,
    against_group,
    episode_scores,
    kept_rows,
    less_own_penalty,
    step_returns,
)
from openrlhf_gagpo.credit.sets import Blocks, Floats, by_spread, deviations, normalise, set_statistics

__all__ = ["DEFAULTS", "GagpoOptions", "gagpo"]

DEFAULTS: Mapping[str, object] = {**BASELINE_DEFAULTS, "actor.policy_loss_type": "gspo"}
"""Run-level settings: those of the baselines, with one importance ratio per action."""


@dataclass(frozen=True)
class GagpoOptions(EstimatorOptions):
    """Options of GAGPO; the defaults are the paper's settings, the others its ablations and two refinements."""

    gamma: float = option("gamma", 0.95)
    lambd: float = option("lambd", 0.8)
    normalize: str = option("normalize", "group")
    ddof: int = option("ddof", 1)
    monte_carlo: bool = option("monte_carlo", False)
    truncation: str = option("truncation", "terminal")
    singleton: str = option("singleton", "paper")
    broadcast_coef: float = option("broadcast_coef", 0.0)
    statistics: str = option("statistics", "trajectories")
    invalid_penalty: float = option("invalid_penalty", 0.1)
    invalid_penalty_mode: str = option("invalid_penalty_mode", "reward")
    drop_reward_free_groups: bool = option("drop_reward_free_groups", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.monte_carlo and self.truncation == "bootstrap":
            raise ValueError("monte_carlo uses no later value, so truncation cannot be bootstrap; set it to terminal")


@register("gagpo", GagpoOptions, DEFAULTS)
def gagpo(batch: StepBatch, options: GagpoOptions) -> CreditResult:
    """GAE whose critic is the mean return of all visits of a state by the trajectories of one rollout group.

    ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)``, ``A_t = delta_t + gamma lambda A_{t+1}``, V = 0 after the last step,
    then standardised over the steps of the group. All steps of a group whose advantages do not differ get exactly 0.

    With the penalty c of an invalid step (I_t = 1) in mode ``reward``, r_t is the reward less c I_t everywhere. In mode
    ``local`` it is so in delta_t, but V averages R_t - c I_t with R_t the return without penalties. V(s_{t+1}) and the
    lambda sum then carry a penalty to earlier steps all the same, which the Monte Carlo form R_t - c I_t - V(s_t) does
    not.
    """
    layout, cells = batch.layout, batch.layout.cells
    penalty, mode = options.invalid_penalty, options.invalid_penalty_mode
    rewards = less_own_penalty(batch.sorted_reward, batch, penalty, mode != "none")
    if mode == "reward":
        returns = layout.backward_sum(rewards, options.gamma)
    else:
        returns = step_returns(batch, options.gamma, penalty, mode)
    cell_value = cells.sum(returns) / cells.count
    # index -1, a final state without value, picks the 0 at the end
    final_value = np.append(cell_value, 0.0)[layout.final_cell] if options.truncation == "bootstrap" else 0.0
    value = cells.expand(cell_value)
    if options.singleton == "passthrough":
        value = _pass_through(batch, rewards, value, final_value, options.gamma)
    residual = layout.next_values(value, final_value)
    residual *= options.gamma
    residual += rewards
    residual -= value
    if options.monte_carlo:
        advantage = returns - value
    else:
        advantage = layout.backward_sum(residual, options.gamma * options.lambd)
    keep = kept_rows(batch, options.drop_reward_free_groups)
    advantage = _normalise(batch, advantage, keep, options)
    if options.broadcast_coef != 0.0:
        # GiGPO's term as GiGPO has it: its scores never carry the penalties of other steps
        own_mode = "none" if mode == "none" else "local"
        scores = episode_scores(batch, penalty, own_mode)
        advantage = advantage + options.broadcast_coef * against_group(batch, scores, options.statistics, by_spread)[0]
    return CreditResult.from_sorted(
        batch, advantage=advantage, return_=returns, value=lambda: value, td_residual=residual, keep=keep
    )


def _normalise(batch: StepBatch, advantage: Floats, keep: NDArray[np.bool_] | None, options: GagpoOptions) -> Floats:
    """Standardise over each group or over the kept rows of the batch."""
    if options.normalize == "none":
        return advantage
    if options.normalize == "group":
        groups = batch.layout.groups
        return normalise(advantage, groups, ddof=options.ddof)[0]
    entries = advantage if keep is None else advantage[keep]
    if entries.size == 0:
        return np.zeros_like(advantage)
    stats = set_statistics(entries, Blocks.of_lengths(np.array([entries.size])), options.ddof)
    return deviations(advantage, Blocks.of_lengths(np.array([advantage.size])), stats)


def _pass_through(
    batch: StepBatch, rewards: Floats, value: Floats, final_value: Floats | float, gamma: float
) -> Floats:
    """Values with those of states visited once replaced by reward plus discounted next value.

    Then their TD residual is 0 and later credit passes through them undistorted. A chain of such states is a discounted
    sum up to the next shared state, so it is found by walking the time index backwards. A bootstrapped final value
    stays the mean return of its state.
    """
    layout = batch.layout
    out = value.copy()
    is_first = np.zeros(layout.n, dtype=np.bool_)
    is_first[layout.trajectories.start] = True
    alone = layout.cells.expand(layout.cells.count) == 1
    following = layout.next_values(out, final_value)
    for start, end in zip(layout.bounds[-2::-1], layout.bounds[:0:-1], strict=True):
        rows = layout.packed[start:end]
        changed = rows[alone[rows]]
        out[changed] = rewards[changed] + gamma * following[changed]
        inner = changed[~is_first[changed]]
        following[inner - 1] = out[inner]
    return out
