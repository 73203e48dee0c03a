"""GRPO: the episode score compared with the other episodes of its group, the same for every step."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, option
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, group_statistics
from openrlhf_gagpo.credit.statistics import centred, standardised

__all__ = ["GrpoOptions", "grpo"]


@dataclass(frozen=True)
class GrpoOptions(EstimatorOptions):
    """Options of GRPO over environment steps."""

    no_std_norm: bool = option("no_std_norm", False)


@register("grpo", GrpoOptions, BASELINE_PRESETS)
def grpo(batch: StepBatch, options: GrpoOptions) -> CreditResult:
    """Compute ``(score - mean) / (std + eps)`` inside the group, or ``score - mean`` with ``no_std_norm``."""
    compare = centred if options.no_std_norm else standardised
    scores = episode_scores(batch, options)
    statistics = group_statistics(batch, scores, options)
    return CreditResult.of(
        batch,
        options,
        advantage=compare(scores, batch.groups, statistics),
        return_=scores,
        value=batch.groups.expand(statistics.mean),
    )
