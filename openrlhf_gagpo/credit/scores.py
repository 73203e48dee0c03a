"""What several estimators share: penalised rewards and returns, episode scores, groups without reward.

All arrays are in the sorted order of the batch's layout.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.sets import Floats, Scale, SetStatistics, deviations, normalise, set_statistics

__all__ = [
    "BASELINE_DEFAULTS",
    "against_group",
    "episode_scores",
    "kept_rows",
    "less_own_penalty",
    "reward_free_groups",
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
    if not applies or penalty == 0.0:
        return values
    out = penalty * batch.sorted_invalid
    return np.subtract(values, out, out=out)


def shaped_rewards(batch: StepBatch, penalty: float, mode: str) -> Floats:
    """Rewards that returns accumulate: less the penalty in mode ``reward``, untouched otherwise."""
    return less_own_penalty(batch.sorted_reward, batch, penalty, mode == "reward")


def step_returns(batch: StepBatch, gamma: float, penalty: float, mode: str) -> Floats:
    """Discounted return from each step to the end of its episode.

    Mode ``local`` takes the penalty off the return of the invalid step alone, as GiGPO's reference code does; the
    residuals of GAGPO still pass it on to earlier steps.
    """
    returns = batch.layout.backward_sum(shaped_rewards(batch, penalty, mode), gamma)
    return less_own_penalty(returns, batch, penalty, mode == "local")


def episode_scores(batch: StepBatch, penalty: float, mode: str) -> Floats:
    """Undiscounted reward of each row's episode; mode ``local`` takes a row's own penalty off that row only."""
    trajectories = batch.layout.trajectories
    totals = trajectories.expand(trajectories.sum(shaped_rewards(batch, penalty, mode)))
    return less_own_penalty(totals, batch, penalty, mode == "local")


def against_group(
    batch: StepBatch, scores: Floats, statistics: str, scale: Scale | None
) -> tuple[Floats, SetStatistics]:
    """Episode scores less the mean of their group, times ``scale`` of its statistics; and the statistics.

    Those are over the group's ``rows`` or over one entry per trajectory: its row of step 0 with that row's own local
    penalty, whatever order the rows were given in. A group with one entry has nothing to be compared with: its mean
    is 0, so its score passes as it is.
    """
    groups, trajectories = batch.layout.groups, batch.layout.trajectories
    if statistics == "rows":
        advantage, stats = normalise(scores, groups, scale)
        lone = stats.count == 1
        stats.mean[lone] = 0.0
        advantage[groups.start[lone]] = scores[groups.start[lone]]
        return advantage, stats
    stats = set_statistics(scores[trajectories.start], batch.layout.group_trajectories)
    stats.mean[stats.count == 1] = 0.0
    return deviations(scores, groups, stats, scale), stats


def reward_free_groups(batch: StepBatch) -> NDArray[np.bool_]:
    """Per group: no step of it was rewarded, so all its returns are zero before penalties."""
    return batch.layout.groups.largest(np.abs(batch.sorted_reward)) == 0.0


def kept_rows(batch: StepBatch, drop_reward_free_groups: bool) -> NDArray[np.bool_] | None:
    """Mask of the rows that train, None for all of them; reward-free groups leave when asked to."""
    if not drop_reward_free_groups:
        return None
    return batch.layout.groups.expand(~reward_free_groups(batch))
