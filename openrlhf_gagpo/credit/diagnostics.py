"""Numbers that show whether a batch carries step-level signal: shared states, spread, groups without spread."""

from __future__ import annotations

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.scores import reward_free_groups
from openrlhf_gagpo.credit.sets import Bools, Floats
from openrlhf_gagpo.credit.statistics import ROUNDING, centred, statistics_of

__all__ = ["SIZE_BINS", "clip_scale_spread", "diagnose", "explained_variance"]

SIZE_BINS: tuple[tuple[str, int, float], ...] = (
    ("1", 1, 1),
    ("2", 2, 2),
    ("3_4", 3, 4),
    ("5_8", 5, 8),
    ("9_16", 9, 16),
    ("17_up", 17, float("inf")),
)
"""Bins of state group sizes: label, smallest and largest size."""


def diagnose(batch: StepBatch, advantage: Floats, keep: Bools) -> dict[str, float]:
    """Compute diagnostics of advantages in the batch's order; spread is over kept rows, state sharing over all rows.

    ``singleton_share``: rows whose state was visited once in their group. ``state_group_size_mean``: visits per
    distinct state of a group; ``state_group_size_share/<bin>``: rows per bin of that number. ``advantage_*``: location
    and spread, dimensionless if the estimator normalises. ``degenerate_group_share``: groups whose advantages are all
    0; a group whose steps share one advantage other than 0 does move the policy. ``reward_free_group_share``: groups
    without any reward. ``penalty_only_group_share``: those of them whose advantages differ, which only penalties can
    cause if an estimator compares the episodes of a group. ``rows_dropped``: rows not kept. ``lone_start_share`` and
    ``rejoined_share`` tell why states are shared or not: the former is the share of trajectories whose first state was
    visited once, the latter that of rows whose state was reached from different states, which a state that contains its
    past never is.
    """
    sizes = batch.states.count[batch.states.count > 0]
    kept = advantage[keep]
    if kept.size == 0:
        kept = np.zeros(1)
    low, high = np.quantile(kept, [0.25, 0.75])
    degenerate = batch.groups.sum(np.abs(advantage) > ROUNDING) == 0
    reward_free = reward_free_groups(batch)
    differs = batch.groups.sum(np.abs(centred(advantage, batch.groups, statistics_of(advantage, batch.groups)))) > 0
    visits = batch.states.expand(batch.states.count)
    report = {
        "singleton_share": float(np.count_nonzero(sizes == 1) / len(batch)),
        "state_group_size_mean": float(sizes.mean()),
        "advantage_min": float(kept.min()),
        "advantage_max": float(kept.max()),
        "advantage_std": float(kept.std()),
        "advantage_iqr": float(high - low),
        "advantage_abs_gt1_share": float(np.mean(np.abs(kept) > 1.0)),
        "degenerate_group_share": float(degenerate.mean()),
        "reward_free_group_share": float(reward_free.mean()),
        "penalty_only_group_share": float((reward_free & differs).mean()),
        "rows_dropped": float(np.count_nonzero(~keep)),
        "lone_start_share": float(np.mean(visits[batch.trajectories.start] == 1)),
        "rejoined_share": float(np.mean(_rejoined(batch))),
    }
    for label, smallest, largest in SIZE_BINS:
        inside = (sizes >= smallest) & (sizes <= largest)
        report[f"state_group_size_share/{label}"] = float(sizes[inside].sum() / len(batch))
    return report


def _rejoined(batch: StepBatch) -> Bools:
    """Return which rows are in a state that was reached from two states, or both at a start and later."""
    before = np.roll(batch.states.label, 1)
    before[batch.trajectories.start] = -1
    states = len(batch.states.count)
    first, last = np.full(states, states), np.full(states, -2)
    np.minimum.at(first, batch.states.label, before)
    np.maximum.at(last, batch.states.label, before)
    rejoined: Bools = batch.states.expand(first < last)
    return rejoined


def explained_variance(targets: Floats, values: Floats) -> float:
    """Return the share of the variance of ``targets`` that ``values`` predict: 1 for all of it, 0 for a constant.

    It is below 0 if the values are worse than a constant, and 0 if the targets do not vary.
    """
    variance = float(targets.var())
    if np.sqrt(variance) <= ROUNDING * max(1.0, float(np.abs(targets).max(initial=0.0))):
        return 0.0
    return 1.0 - float((targets - values).var()) / variance


def clip_scale_spread(clip_scale: Floats, keep: Bools) -> dict[str, float]:
    """Compute mean and standard deviation of the clip factor of the kept rows; 1 and 0 without any."""
    kept = clip_scale[keep] if keep.any() else np.ones(1)
    return {"clip_scale_mean": float(kept.mean()), "clip_scale_std": float(kept.std())}
