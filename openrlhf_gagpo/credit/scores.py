"""Parts that several estimators share: returns, episode scores and their group statistics, groups without reward.

Arrays are in the batch's order.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions
from openrlhf_gagpo.credit.penalty import own_penalty, shaped_rewards
from openrlhf_gagpo.credit.sets import Bools, Floats, Sets
from openrlhf_gagpo.credit.statistics import Statistics, statistics_of

__all__ = [
    "episode_scores",
    "group_statistics",
    "kept_rows",
    "reward_free_groups",
    "score_entries",
    "step_returns",
    "totals",
]


def step_returns(batch: StepBatch, options: EstimatorOptions, gamma: float) -> Floats:
    """Return the discounted return from each step on, with penalties as ``invalid_penalty_mode`` says."""
    rewards = shaped_rewards(batch, options)
    return batch.trajectories.backward_sum(rewards, gamma) - own_penalty(batch, options)


def totals(batch: StepBatch, rewards: Floats) -> Floats:
    """Return for each step the undiscounted sum of ``rewards`` over its episode."""
    return batch.trajectories.expand(batch.trajectories.sum(rewards))


def episode_scores(batch: StepBatch, options: EstimatorOptions) -> Floats:
    """Return for each step the undiscounted reward of its episode, with penalties as ``invalid_penalty_mode`` says."""
    return totals(batch, shaped_rewards(batch, options)) - own_penalty(batch, options)


def score_entries(batch: StepBatch, scores: Floats, options: EstimatorOptions) -> tuple[Floats, Sets]:
    """Return the entries of the statistics of episode scores, and their groups: all rows, or one per trajectory.

    The entry of a trajectory is the score of step 0, with that step's own penalty.
    """
    if options.statistics == "rows":
        return scores, batch.groups
    return scores[batch.trajectories.start], batch.trajectory_groups


def group_statistics(batch: StepBatch, scores: Floats, options: EstimatorOptions) -> Statistics:
    """Compute statistics of episode scores per group, over the entries of ``score_entries``.

    A group with a single entry gets mean 0, so its score is left unchanged.
    """
    statistics = statistics_of(*score_entries(batch, scores, options))
    return replace(statistics, mean=np.where(statistics.count > 1, statistics.mean, 0.0))


def reward_free_groups(batch: StepBatch) -> Bools:
    """Return per group whether none of its steps was rewarded, so that all its returns are 0 before penalties."""
    reward_free: Bools = batch.groups.sum(batch.reward != 0.0) == 0
    return reward_free


def kept_rows(batch: StepBatch, options: EstimatorOptions) -> Bools:
    """Return which rows train: all of them, or with ``drop_reward_free_groups`` those of groups with a reward."""
    if options.drop_reward_free_groups:
        return batch.groups.expand(~reward_free_groups(batch))
    return np.ones(len(batch), dtype=np.bool_)
