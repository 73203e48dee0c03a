"""What invalid and inadmissible steps cost, and where the cost counts. Arrays are in the batch's order.

A step costs the larger of the prices that apply to it: ``invalid_penalty`` if its response was malformed,
``inadmissible_penalty`` if the environment did not recognise its action.
"""

from __future__ import annotations

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions
from openrlhf_gagpo.credit.sets import Floats

__all__ = ["own_penalty", "shaped_rewards", "step_penalty"]


def step_penalty(batch: StepBatch, options: EstimatorOptions) -> Floats:
    """What each step costs; nothing in mode ``none``."""
    penalty = np.zeros(len(batch))
    if options.invalid_penalty_mode != "none":
        penalty[batch.invalid] = options.invalid_penalty
        penalty[batch.inadmissible] = np.maximum(penalty[batch.inadmissible], options.inadmissible_penalty)
    return penalty


def shaped_rewards(batch: StepBatch, options: EstimatorOptions) -> Floats:
    """Rewards that returns and scores accumulate: less the penalties in mode ``reward``, untouched otherwise."""
    if options.invalid_penalty_mode == "reward":
        return batch.reward - step_penalty(batch, options)
    return batch.reward


def own_penalty(batch: StepBatch, options: EstimatorOptions) -> Floats:
    """Penalties that mode ``local`` takes off a step's own score or return and no other; none in other modes."""
    if options.invalid_penalty_mode == "local":
        return step_penalty(batch, options)
    return np.zeros(len(batch))
