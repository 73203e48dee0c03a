"""RLOO: the episode score against the mean of the other entries of its group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, option
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import BASELINE_DEFAULTS, against_group, episode_scores, kept_rows
from openrlhf_gagpo.credit.sets import Floats, SetStatistics

__all__ = ["RlooOptions", "rloo"]


@dataclass(frozen=True)
class RlooOptions(EstimatorOptions):
    """Options of RLOO over environment steps."""

    statistics: str = option("statistics", "trajectories")
    invalid_penalty: float = option("invalid_penalty", 0.1)
    invalid_penalty_mode: str = option("invalid_penalty_mode", "local")
    drop_reward_free_groups: bool = option("drop_reward_free_groups", False)


@register("rloo", RlooOptions, BASELINE_DEFAULTS)
def rloo(batch: StepBatch, options: RlooOptions) -> CreditResult:
    """``(score - mean) n / (n - 1)`` inside the group, which is an entry's score less the mean of the n - 1 others.

    With ``statistics=rows`` the other entries include the sibling steps of the same trajectory. With ``trajectories``
    the entries are the scores of steps 0; a later step with its own local penalty is no entry, and the factor
    ``n / (n - 1)`` enlarges its penalty.
    """
    groups = batch.layout.groups
    scores = episode_scores(batch, options.invalid_penalty, options.invalid_penalty_mode)
    advantage, stats = against_group(batch, scores, options.statistics, _leave_one_out)
    return CreditResult.from_sorted(
        batch,
        advantage=advantage,
        return_=scores,
        value=lambda: groups.expand(stats.mean),
        keep=kept_rows(batch, options.drop_reward_free_groups),
    )


def _leave_one_out(stats: SetStatistics) -> Floats:
    """``n / (n - 1)`` per set; 1 where there is no other entry."""
    return np.where(stats.count > 1, stats.count / np.maximum(stats.count - 1, 1), 1.0)
