"""REINFORCE++ with a group baseline: centred episode scores, whitened over all trained tokens of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, group_statistics, kept_rows
from openrlhf_gagpo.credit.statistics import centred, whitened

__all__ = ["ReinforceBaselineOptions", "reinforce_baseline"]


@dataclass(frozen=True)
class ReinforceBaselineOptions(EstimatorOptions):
    """Options of REINFORCE++ with a group baseline over environment steps."""


@register("reinforce_baseline", ReinforceBaselineOptions, BASELINE_PRESETS)
def reinforce_baseline(batch: StepBatch, options: ReinforceBaselineOptions) -> CreditResult:
    """Compute ``score - mean`` inside the group, whitened over the batch with rows counted once per trained token."""
    scores = episode_scores(batch, options)
    statistics = group_statistics(batch, scores, options)
    tokens = np.where(kept_rows(batch, options), batch.n_tokens, 0)
    return CreditResult.of(
        batch,
        options,
        advantage=whitened(centred(scores, batch.groups, statistics), tokens),
        return_=scores,
        value=batch.groups.expand(statistics.mean),
    )
