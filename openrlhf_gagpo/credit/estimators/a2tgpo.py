"""A2TGPO (arXiv 2605.06200): information gains compared per turn, accumulated, and used to scale the clip range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.gains import GainOptions, Gains, compared, floored_scale, outcome_advantage, turns
from openrlhf_gagpo.credit.options import option
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores
from openrlhf_gagpo.credit.sets import Floats, Sequences
from openrlhf_gagpo.credit.statistics import centred, statistics_of
from openrlhf_gagpo.losses import gspo
from openrlhf_gagpo.options import declare

__all__ = ["PRESETS", "A2tgpoOptions", "a2tgpo"]

PRESETS: Mapping[str, object] = {
    **BASELINE_PRESETS,
    "actor.policy_loss_type": gspo.NAME,
    "actor.eps_clip_low_high": [3e-3, 4e-3],
    "algo.kl.init_coef": 0.0,
}
"""One ratio per turn, a narrow clip range, no KL."""


@dataclass(frozen=True)
class A2tgpoOptions(GainOptions):
    """Options of A2TGPO; the defaults are those of its released code."""

    gamma: float = option("gamma", 1.0)
    no_std_norm: bool = option("no_std_norm", False)
    a2tgpo_alpha: float = declare(0.3, "weight of the information gains next to the outcome")
    a2tgpo_beta: float = declare(
        0.3, "how far a step's information gain may widen or narrow its clip range, as a share", range=(0.0, 0.99)
    )
    turn_norm: str = declare(
        "turn_group",
        "how gains are compared: turn_group = each with those of the same turn, then summed; unbiased = the sum of "
        "later gains with that of the other episodes that reach the turn",
        choices=("turn_group", "unbiased"),
    )


@register("a2tgpo", A2tgpoOptions, PRESETS, needs={"ig"})
def a2tgpo(batch: StepBatch, options: A2tgpoOptions) -> CreditResult:
    """Compute ``A = o + alpha D`` and the factor of the clip range ``1 + beta (2 sigmoid(z) - 1)``.

    o compares the episode's score with its group, and z a step's gain with those of the same group and step, both over
    ``sqrt(population variance + 1e-8) + 1e-6``. D sums z over the m measured steps from this one on, the k-th times
    ``gamma^k``, over the root of m. A step without a gain has z = D = 0. With ``turn_norm`` unbiased D is that of
    ``_unbiased``; z remains.
    """
    gains = Gains.of(batch)
    cells = turns(batch.groups.label[gains.measured], batch.step[gains.measured])
    z = compared(gains.values, cells, statistics_of(gains.values, cells, ddof=0), options.no_std_norm)
    later = _unbiased(batch, gains, options) if options.turn_norm == "unbiased" else _summed(batch, gains, z, options)
    return CreditResult.of(
        batch,
        options,
        advantage=outcome_advantage(batch, options, options.no_std_norm) + options.a2tgpo_alpha * later,
        return_=episode_scores(batch, options),
        clip_scale=1 + options.a2tgpo_beta * np.tanh(gains.rows(z) / 2),  # 2 sigmoid(z) - 1 = tanh(z / 2)
    )


def _summed(batch: StepBatch, gains: Gains, z: Floats, options: A2tgpoOptions) -> Floats:
    """Sum z over the measured steps from each one on, discounted per measured step, over the root of their number."""
    measured = Sequences.of_lengths(batch.trajectories.sum(gains.measured).astype(np.int64))
    left = measured.backward_sum(np.ones(len(z)), 1.0)
    return gains.rows(measured.backward_sum(z, options.gamma) / np.sqrt(left))


def _unbiased(batch: StepBatch, gains: Gains, options: A2tgpoOptions) -> Floats:
    """Compare the discounted sum of later gains with its mean over the group's other episodes that reach the step.

    Whether an episode reaches a step is known before the step's action is drawn, so this baseline does not depend on
    the action. The differences of a group are divided by their root mean square.
    """
    total = batch.trajectories.backward_sum(gains.rows(gains.values), options.gamma)
    cells = turns(batch.groups.label, batch.step)
    others = np.maximum(cells.count - 1, 1)
    deviation = centred(total, cells, statistics_of(total, cells)) * cells.expand(cells.count / others)
    if options.no_std_norm:
        return deviation
    root_mean_square = np.sqrt(batch.groups.mean(deviation**2))
    unbiased: Floats = deviation / batch.groups.expand(floored_scale(root_mean_square))
    return unbiased
