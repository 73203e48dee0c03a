"""RLOO: the episode score compared with the mean of the other entries of its group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, group_statistics
from openrlhf_gagpo.credit.statistics import centred

__all__ = ["RlooOptions", "rloo"]


@dataclass(frozen=True)
class RlooOptions(EstimatorOptions):
    """Options of RLOO over environment steps."""


@register("rloo", RlooOptions, BASELINE_PRESETS)
def rloo(batch: StepBatch, options: RlooOptions) -> CreditResult:
    """Compute ``(score - mean) n / (n - 1)`` inside the group: an entry's score minus the mean of the n - 1 others.

    With ``statistics=rows`` the other entries include the sibling steps of the same trajectory. With ``trajectories``
    the entries are the scores of steps 0; a later step with its own local penalty is not an entry, and the factor
    ``n / (n - 1)`` enlarges its penalty.
    """
    scores = episode_scores(batch, options)
    statistics = group_statistics(batch, scores, options)
    others = statistics.count - 1
    leave_one_out = np.where(others > 0, statistics.count / np.maximum(others, 1), 1.0)
    return CreditResult.of(
        batch,
        options,
        advantage=centred(scores, batch.groups, statistics) * batch.groups.expand(leave_one_out),
        return_=scores,
        value=batch.groups.expand(statistics.mean),
    )
