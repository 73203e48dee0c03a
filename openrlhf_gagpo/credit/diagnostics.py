"""Numbers that tell whether a batch carries step-level signal: state sharing, spread, groups without any."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.scores import reward_free_groups
from openrlhf_gagpo.credit.sets import Floats, set_statistics

__all__ = ["SIZE_BINS", "diagnose"]

SIZE_BINS: tuple[tuple[str, int, float], ...] = (
    ("1", 1, 1),
    ("2", 2, 2),
    ("3_4", 3, 4),
    ("5_8", 5, 8),
    ("9_16", 9, 16),
    ("17_up", 17, float("inf")),
)
"""Bins of state group sizes: label, smallest and largest size."""


def diagnose(batch: StepBatch, advantage: Floats, keep: NDArray[np.bool_]) -> dict[str, float]:
    """Diagnostics of row-ordered advantages; spread is over kept rows, state sharing over all rows.

    ``state_groups/*``: share of rows whose state was visited once in their group, mean number of visits per distinct
    state, share of rows per size bin. ``advantage/*``: spread (dimensionless where the estimator normalises).
    ``groups/*``: counts, share of groups whose advantages do not differ, and groups without reward.
    """
    layout = batch.layout
    sizes = layout.cells.count
    kept = advantage[keep]
    if kept.size == 0:
        kept = np.zeros(1)
    low, high = np.quantile(kept, [0.25, 0.75])
    degenerate = set_statistics(advantage[layout.order], layout.groups).flat
    reward_free = reward_free_groups(batch)
    report = {
        "state_groups/singleton_share": float(np.count_nonzero(sizes == 1) / layout.n),
        "state_groups/mean_size": float(sizes.mean()),
        "advantage/min": float(kept.min()),
        "advantage/max": float(kept.max()),
        "advantage/iqr": float(high - low),
        "advantage/abs_above_1_share": float(np.mean(np.abs(kept) > 1.0)),
        "groups/count": float(len(layout.groups.count)),
        "groups/degenerate_share": float(degenerate.mean()),
        "groups/reward_free": float(np.count_nonzero(reward_free)),
        "groups/reward_free_share": float(reward_free.mean()),
        "rows/dropped": float(np.count_nonzero(~keep)),
    }
    for label, smallest, largest in SIZE_BINS:
        inside = (sizes >= smallest) & (sizes <= largest)
        report[f"state_groups/size_{label}_share"] = float(sizes[inside].sum() / layout.n)
    return report
