"""IGPO: information gains as rewards of the turns, normalised with or next to the outcome, and summed to the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.gains import GainOptions, Gains, compared
from openrlhf_gagpo.credit.options import option
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, score_entries
from openrlhf_gagpo.credit.sets import Sets
from openrlhf_gagpo.credit.statistics import statistics_of
from openrlhf_gagpo.options import declare

__all__ = ["PRESETS", "IgpoOptions", "igpo"]

PRESETS: Mapping[str, object] = {**BASELINE_PRESETS, "algo.kl.init_coef": 0.001}
"""Those of the baselines, with a weaker KL."""


@dataclass(frozen=True)
class IgpoOptions(GainOptions):
    """Options of IGPO; the defaults are those of its released code."""

    gamma: float = option("gamma", 1.0)
    no_std_norm: bool = option("no_std_norm", False)
    ig_norm: str = declare(
        "separate",
        "whether a group's information gains and outcomes have a mean and deviation each or in common",
        choices=("separate", "joint"),
    )
    outcome_weight: float = declare(1.0, "factor of the episode score, before normalising")
    ig_weight: float = declare(1.0, "factor of the information gains, before normalising")


@register("igpo", IgpoOptions, PRESETS, needs={"ig"})
def igpo(batch: StepBatch, options: IgpoOptions) -> CreditResult:
    """Compute the discounted sum of normalised gains from this step on, and of the normalised outcome after them.

    ``A_t = z_t + gamma A_{t+1}`` where step t has a gain, ``A_t = A_{t+1}`` where it has none, and the normalised
    outcome in the place of A after the last step. Deviations are divided by
    ``sqrt(population variance + 1e-8) + 1e-6``.
    """
    gains = Gains.of(batch, options.ig_weight)
    scores = episode_scores(batch, options)
    weighted = options.outcome_weight * scores
    outcomes, outcome_groups = score_entries(batch, weighted, options)
    gain_groups = Sets.of_labels(batch.groups.label[gains.measured], len(batch.groups.count))
    if options.ig_norm == "joint":
        label = np.concatenate([gain_groups.label, outcome_groups.label])
        everything = Sets.of_labels(label, len(batch.groups.count))
        of_gains = of_outcomes = statistics_of(np.concatenate([gains.values, outcomes]), everything, ddof=0)
    else:
        of_gains = statistics_of(gains.values, gain_groups, ddof=0)
        of_outcomes = statistics_of(outcomes, outcome_groups, ddof=0)
    z = gains.rows(compared(gains.values, gain_groups, of_gains, options.no_std_norm))
    outcome = compared(weighted, batch.groups, of_outcomes, options.no_std_norm)
    later_gains = batch.trajectories.backward_sum(z, np.where(gains.measured, options.gamma, 1.0))
    gains_left = batch.trajectories.backward_sum(gains.measured.astype(np.float64), 1.0)
    return CreditResult.of(batch, options, advantage=later_gains + options.gamma**gains_left * outcome, return_=scores)
