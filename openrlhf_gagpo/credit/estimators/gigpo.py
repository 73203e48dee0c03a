"""GiGPO: an episode advantage per group plus a step advantage among visits of the same state."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, option
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import BASELINE_DEFAULTS, against_group, episode_scores, kept_rows, step_returns
from openrlhf_gagpo.credit.sets import by_spread, normalise

__all__ = ["GigpoOptions", "gigpo"]


@dataclass(frozen=True)
class GigpoOptions(EstimatorOptions):
    """Options of GiGPO; the defaults are its ALFWorld settings."""

    gamma: float = option("gamma", 0.95)
    gigpo_mode: str = option("gigpo_mode", "mean_std_norm")
    step_coef: float = option("step_coef", 1.0)
    statistics: str = option("statistics", "trajectories")
    invalid_penalty: float = option("invalid_penalty", 0.1)
    invalid_penalty_mode: str = option("invalid_penalty_mode", "local")
    drop_reward_free_groups: bool = option("drop_reward_free_groups", False)


@register("gigpo", GigpoOptions, BASELINE_DEFAULTS)
def gigpo(batch: StepBatch, options: GigpoOptions) -> CreditResult:
    """``A^E + w A^S``: episode score against the group, step return against the other visits of the same state.

    A state visited once has ``A^S = 0``.
    """
    cells = batch.layout.cells
    penalty, mode = options.invalid_penalty, options.invalid_penalty_mode
    scale = by_spread if options.gigpo_mode == "mean_std_norm" else None
    returns = step_returns(batch, options.gamma, penalty, mode)
    advantage, stats = normalise(returns, cells, scale)
    advantage *= options.step_coef
    advantage += against_group(batch, episode_scores(batch, penalty, mode), options.statistics, scale)[0]
    return CreditResult.from_sorted(
        batch,
        advantage=advantage,
        return_=returns,
        value=lambda: cells.expand(stats.mean),
        keep=kept_rows(batch, options.drop_reward_free_groups),
    )
