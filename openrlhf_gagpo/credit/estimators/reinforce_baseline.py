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
from openrlhf_gagpo.credit.sets import Floats, Ints
from openrlhf_gagpo.credit.statistics import ROUNDING, centred

__all__ = ["ReinforceBaselineOptions", "reinforce_baseline"]

VARIANCE_EPSILON = 1e-8


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
        advantage=_whitened(centred(scores, batch.groups, statistics), tokens),
        return_=scores,
        value=batch.groups.expand(statistics.mean),
    )


def _whitened(values: Floats, tokens: Ints) -> Floats:
    """Return values minus their token mean, over the root of the unbiased token variance; 0 without spread."""
    total = tokens.sum()
    if total < 2:
        return np.zeros_like(values)
    deviation = values - np.sum(tokens * values) / total
    variance = np.sum(tokens * deviation**2) / (total - 1)
    if np.sqrt(variance) <= ROUNDING * max(1.0, np.abs(values).max()):
        return np.zeros_like(values)
    whitened: Floats = deviation / np.sqrt(variance + VARIANCE_EPSILON)
    return whitened
