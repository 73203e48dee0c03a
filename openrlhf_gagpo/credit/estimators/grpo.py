"""GRPO: the episode score against the other episodes of its group, the same for every step."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, option
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import BASELINE_DEFAULTS, against_group, episode_scores, kept_rows
from openrlhf_gagpo.credit.sets import by_spread

__all__ = ["GrpoOptions", "grpo"]


@dataclass(frozen=True)
class GrpoOptions(EstimatorOptions):
    """Options of GRPO over environment steps."""

    no_std_norm: bool = option("no_std_norm", False)
    statistics: str = option("statistics", "trajectories")
    invalid_penalty: float = option("invalid_penalty", 0.1)
    invalid_penalty_mode: str = option("invalid_penalty_mode", "local")
    drop_reward_free_groups: bool = option("drop_reward_free_groups", False)


@register("grpo", GrpoOptions, BASELINE_DEFAULTS)
def grpo(batch: StepBatch, options: GrpoOptions) -> CreditResult:
    """``(score - mean) / (std + eps)`` inside the group; only ``score - mean`` with ``no_std_norm``."""
    groups = batch.layout.groups
    scores = episode_scores(batch, options.invalid_penalty, options.invalid_penalty_mode)
    advantage, stats = against_group(batch, scores, options.statistics, None if options.no_std_norm else by_spread)
    return CreditResult.from_sorted(
        batch,
        advantage=advantage,
        return_=scores,
        value=lambda: groups.expand(stats.mean),
        keep=kept_rows(batch, options.drop_reward_free_groups),
    )
