"""What several estimators share: returns, episode scores and their comparison inside the group, groups without reward.

Arrays are in the batch's order.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions
from openrlhf_gagpo.credit.penalty import own_penalty, shaped_rewards
from openrlhf_gagpo.credit.sets import Bools, Floats
from openrlhf_gagpo.credit.statistics import Statistics, statistics_of

__all__ = ["episode_scores", "group_statistics", "kept_rows", "reward_free_groups", "step_returns", "totals"]


def step_returns(batch: StepBatch, options: EstimatorOptions, gamma: float) -> Floats:
    """Discounted return from each step to the end of its episode, penalties as ``invalid_penalty_mode`` says."""
    rewards = shaped_rewards(batch, options)
    return batch.trajectories.backward_sum(rewards, gamma) - own_penalty(batch, options)


def totals(batch: StepBatch, rewards: Floats) -> Floats:
    """Undiscounted sum of ``rewards`` over the episode, for each of its steps."""
    return batch.trajectories.expand(batch.trajectories.sum(rewards))


def episode_scores(batch: StepBatch, options: EstimatorOptions) -> Floats:
    """Undiscounted reward of each step's episode, penalties as ``invalid_penalty_mode`` says."""
    return totals(batch, shaped_rewards(batch, options)) - own_penalty(batch, options)


def group_statistics(batch: StepBatch, scores: Floats, options: EstimatorOptions) -> Statistics:
    """Statistics of episode scores per group, over its rows or over one entry per trajectory.

    That entry is the score of step 0, with that step's own penalty. A group with one entry has nothing to be compared
    with: its mean is 0, so its score passes as it is.
    """
    if options.statistics == "rows":
        statistics = statistics_of(scores, batch.groups)
    else:
        statistics = statistics_of(scores[batch.trajectories.start], batch.trajectory_groups)
    return replace(statistics, mean=np.where(statistics.count > 1, statistics.mean, 0.0))


def reward_free_groups(batch: StepBatch) -> Bools:
    """Per group: no step of it was rewarded, so all its returns are zero before penalties."""
    reward_free: Bools = batch.groups.sum(batch.reward != 0.0) == 0
    return reward_free


def kept_rows(batch: StepBatch, options: EstimatorOptions) -> Bools:
    """The rows that train: all of them, or with ``drop_reward_free_groups`` those of groups with a reward."""
    if options.drop_reward_free_groups:
        return batch.groups.expand(~reward_free_groups(batch))
    return np.ones(len(batch), dtype=np.bool_)
