"""A candidate of the study: GAGPO's advantage for steps that share their state, beside the episode's advantage of all.

    gagpo train --algo.plugin results/study/shared_steps.py --algo.advantage.estimator shared_steps ...

GAGPO gives a step in a state that is visited once a residual of 0 and normalises all steps of the group together. Where
most states are visited once, that makes the few others large. Here a group's normalisation is that of its shared steps.
Penalties are left out, since the vault's recipe has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit import CreditResult, EstimatorOptions, StepBatch, option, register
from openrlhf_gagpo.credit.options import LoneStates
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.scores import group_statistics, step_returns, totals
from openrlhf_gagpo.credit.sets import Sets
from openrlhf_gagpo.credit.statistics import standardised, statistics_of
from openrlhf_gagpo.losses import gspo
from openrlhf_gagpo.options import declare


@dataclass(frozen=True)
class SharedStepsOptions(EstimatorOptions):
    """GAGPO's discount and decay, and the weight of what all steps of an episode share."""

    gamma: float = option("gamma", 0.95)
    lambd: float = option("lambd", 0.8)
    episode_weight: float = declare(1.0, "weight of GiGPO's episode advantage, added to every step", range=(0.0, 100.0))

    @property
    def lone_states(self) -> LoneStates | None:
        return LoneStates("the episode's advantage")


@register("shared_steps", SharedStepsOptions, {**BASELINE_PRESETS, "actor.policy_loss_type": gspo.NAME})
def shared_steps(batch: StepBatch, options: SharedStepsOptions) -> CreditResult:
    """Compute GAGPO's raw advantage, standardise it over a group's shared steps, and add the episode's advantage."""
    returns = step_returns(batch, options, options.gamma)
    value = batch.states.expand(batch.states.mean(returns))
    residual = batch.reward + options.gamma * batch.trajectories.following(value) - value
    raw = batch.trajectories.backward_sum(residual, options.gamma * options.lambd)
    shared = batch.states.expand(batch.states.count) > 1
    groups = len(batch.groups.count)
    inside = statistics_of(raw[shared], Sets.of_labels(batch.groups.label[shared], groups))
    step = np.where(shared, standardised(raw, batch.groups, inside), 0.0)
    scores = totals(batch, batch.reward)
    episode = standardised(scores, batch.groups, group_statistics(batch, scores, options))
    return CreditResult.of(
        batch,
        options,
        advantage=step + options.episode_weight * episode,
        return_=returns,
        value=value,
        td_residual=residual,
    )
