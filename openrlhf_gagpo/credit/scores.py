"""What several estimators share: penalised rewards and returns, episode scores, groups without reward.

All arrays are in the sorted order of the batch's layout.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.sets import Floats, SetStatistics, deviations, set_statistics, standardise

__all__ = [
    "BASELINE_DEFAULTS",
    "episode_advantage",
    "episode_scores",
    "kept_rows",
    "less_own_penalty",
    "reward_free_groups",
    "score_statistics",
    "shaped_rewards",
    "step_returns",
]

BASELINE_DEFAULTS: Mapping[str, object] = {
    "actor.policy_loss_type": "ppo",
    "algo.kl.init_coef": 0.01,
    "algo.kl.use_loss": True,
    "algo.kl.estimator": "k3",
    "actor.lr_scheduler": "constant",
    "actor.lr_warmup_ratio": 0.0,
}
"""Run-level settings of GiGPO's pipeline: token ratio, token-mean, k3 KL to the reference, constant learning rate."""


def less_own_penalty(values: Floats, batch: StepBatch, penalty: float, applies: bool) -> Floats:
    """``values`` with every invalid row's penalty taken off that row, if it ``applies``."""
    return values - penalty * batch.sorted_invalid if applies and penalty != 0.0 else values


def shaped_rewards(batch: StepBatch, penalty: float, mode: str) -> Floats:
    """Rewards that returns accumulate: less the penalty in mode ``reward``, untouched otherwise."""
    return less_own_penalty(batch.sorted_reward, batch, penalty, mode == "reward")


def step_returns(batch: StepBatch, gamma: float, penalty: float, mode: str) -> Floats:
    """Discounted return from each step to the end of its episode.

    Mode ``local`` takes the penalty off the return of the invalid step alone, as GiGPO's reference code does.
    """
    returns = batch.layout.backward_sum(shaped_rewards(batch, penalty, mode), gamma)
    return less_own_penalty(returns, batch, penalty, mode == "local")


def episode_scores(batch: StepBatch, penalty: float, mode: str) -> Floats:
    """Undiscounted reward of each row's episode; mode ``local`` takes a row's own penalty off that row only."""
    trajectories = batch.layout.trajectories
    totals = trajectories.expand(trajectories.sum(shaped_rewards(batch, penalty, mode)))
    return less_own_penalty(totals, batch, penalty, mode == "local")


def score_statistics(batch: StepBatch, scores: Floats, statistics: str) -> SetStatistics:
    """Statistics of episode scores per group, over its ``rows`` or over one entry per trajectory.

    The entry is the row of step 0 with its own local penalty, whatever order the rows were given in. A group with one
    entry has nothing to be compared with: its mean is 0, so its score passes as it is.
    """
    layout = batch.layout
    if statistics == "trajectories":
        stats = set_statistics(scores[layout.trajectories.start], layout.group_trajectories)
    else:
        stats = set_statistics(scores, layout.groups)
    stats.mean[stats.count == 1] = 0.0
    return stats


def episode_advantage(batch: StepBatch, penalty: float, mode: str, statistics: str, *, divide: bool) -> Floats:
    """GiGPO's A^E: episode score less its group's mean, over the group's standard deviation if ``divide``."""
    scores = episode_scores(batch, penalty, mode)
    stats = score_statistics(batch, scores, statistics)
    return (standardise if divide else deviations)(scores, batch.layout.groups, stats)


def reward_free_groups(batch: StepBatch) -> NDArray[np.bool_]:
    """Per group: no step of it was rewarded, so all its returns are zero before penalties."""
    return batch.layout.groups.largest(np.abs(batch.sorted_reward)) == 0.0


def kept_rows(batch: StepBatch, drop_reward_free_groups: bool) -> NDArray[np.bool_] | None:
    """Mask of the rows that train, None for all of them; reward-free groups leave when asked to."""
    if not drop_reward_free_groups:
        return None
    return batch.layout.groups.expand(~reward_free_groups(batch))
