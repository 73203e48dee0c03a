"""REINFORCE++ with a group baseline: centred episode scores, whitened over all trained tokens of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, option
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import BASELINE_DEFAULTS, against_group, episode_scores, kept_rows
from openrlhf_gagpo.credit.sets import ROUNDING, Floats

__all__ = ["ReinforceBaselineOptions", "reinforce_baseline"]

VARIANCE_EPSILON = 1e-8


@dataclass(frozen=True)
class ReinforceBaselineOptions(EstimatorOptions):
    """Options of REINFORCE++ with a group baseline over environment steps."""

    statistics: str = option("statistics", "trajectories")
    invalid_penalty: float = option("invalid_penalty", 0.1)
    invalid_penalty_mode: str = option("invalid_penalty_mode", "local")
    drop_reward_free_groups: bool = option("drop_reward_free_groups", False)


@register("reinforce_baseline", ReinforceBaselineOptions, BASELINE_DEFAULTS)
def reinforce_baseline(batch: StepBatch, options: ReinforceBaselineOptions) -> CreditResult:
    """``score - mean`` inside the group, then whitened over the batch with each row counted once per trained token."""
    groups = batch.layout.groups
    scores = episode_scores(batch, options.invalid_penalty, options.invalid_penalty_mode)
    centred, stats = against_group(batch, scores, options.statistics, scale=None)
    keep = kept_rows(batch, options.drop_reward_free_groups)
    tokens = batch.layout.sort(batch.n_tokens).astype(np.float64)
    if keep is not None:
        tokens *= keep
    return CreditResult.from_sorted(
        batch,
        advantage=_whiten(centred, tokens),
        return_=scores,
        value=lambda: groups.expand(stats.mean),
        keep=keep,
    )


def _whiten(values: Floats, tokens: Floats) -> Floats:
    """Values less their token-weighted mean, over the square root of the unbiased token variance; 0 without spread."""
    total = tokens.sum()
    if total < 2:
        return np.zeros_like(values)
    centred = values - (tokens @ values) / total
    variance = (tokens @ (centred * centred)) / (total - 1)
    if np.sqrt(variance) <= ROUNDING * max(1.0, float(values.max()), -float(values.min())):
        return np.zeros_like(values)
    centred /= np.sqrt(variance + VARIANCE_EPSILON)
    return centred
