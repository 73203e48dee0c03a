"""GiGPO: an episode advantage per group plus a step advantage among visits of the same state."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, LoneStates, option
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, group_statistics, step_returns
from openrlhf_gagpo.credit.similarity import similar_states
from openrlhf_gagpo.credit.statistics import centred, standardised, statistics_of
from openrlhf_gagpo.options import declare

__all__ = ["GigpoOptions", "gigpo"]


@dataclass(frozen=True)
class GigpoOptions(EstimatorOptions):
    """Options of GiGPO; the defaults are its ALFWorld settings."""

    gamma: float = option("gamma", 0.95)
    gigpo_mode: str = option("gigpo_mode", "mean_std_norm")
    step_coef: float = option("step_coef", 1.0)
    similarity: float = declare(
        1.0, "share of matching characters from which two states count as the same; 1 = equal texts", range=(0.0, 1.0)
    )

    @property
    def lone_states(self) -> LoneStates | None:
        if self.step_coef == 0.0:
            return None
        similar = "--algo.advantage.similarity 0.9" if self.similarity == 1.0 else ""
        return LoneStates("the episode's advantage", similar)


@register("gigpo", GigpoOptions, BASELINE_PRESETS)
def gigpo(batch: StepBatch, options: GigpoOptions) -> CreditResult:
    """Compute ``A^E + w A^S``: episode score against the group, step return against other visits of the same state.

    A state visited once has ``A^S = 0``. With ``similarity`` below 1, states with similar texts are one.
    """
    compare = standardised if options.gigpo_mode == "mean_std_norm" else centred
    scores = episode_scores(batch, options)
    returns = step_returns(batch, options, options.gamma)
    states = similar_states(batch, options.similarity)
    visits = statistics_of(returns, states)
    episode_advantage = compare(scores, batch.groups, group_statistics(batch, scores, options))
    step_advantage = compare(returns, states, visits)
    return CreditResult.of(
        batch,
        options,
        advantage=episode_advantage + options.step_coef * step_advantage,
        return_=returns,
        value=states.expand(visits.mean),
    )
