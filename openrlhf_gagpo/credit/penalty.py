"""Penalties of invalid and inadmissible steps, and where they count. Arrays are in the batch's order.

A step costs the larger of the penalties that apply to it: ``invalid_penalty`` if its response was malformed,
``inadmissible_penalty`` if the environment did not recognise its action.
"""

from __future__ import annotations

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions
from openrlhf_gagpo.credit.sets import Floats

__all__ = ["own_penalty", "shaped_rewards", "step_penalty"]


def step_penalty(batch: StepBatch, options: EstimatorOptions) -> Floats:
    """Return the penalty of each step, which is 0 in mode ``none``."""
    penalty = np.zeros(len(batch))
    if options.invalid_penalty_mode != "none":
        penalty[batch.invalid] = options.invalid_penalty
        penalty[batch.inadmissible] = np.maximum(penalty[batch.inadmissible], options.inadmissible_penalty)
    return penalty


def shaped_rewards(batch: StepBatch, options: EstimatorOptions) -> Floats:
    """Return the rewards that returns and scores accumulate: minus penalties in mode ``reward``, else unchanged."""
    if options.invalid_penalty_mode == "reward":
        return batch.reward - step_penalty(batch, options)
    return batch.reward


def own_penalty(batch: StepBatch, options: EstimatorOptions) -> Floats:
    """Return the penalties that mode ``local`` subtracts from a step's own score or return only; else 0."""
    if options.invalid_penalty_mode == "local":
        return step_penalty(batch, options)
    return np.zeros(len(batch))
