"""How far two estimators agree on the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import spearmanr

from openrlhf_gagpo.comparison.compute import Credit
from openrlhf_gagpo.credit.statistics import ROUNDING

__all__ = ["Agreement", "agreement", "agreements"]


@dataclass(frozen=True)
class Agreement:
    """Agreement of two estimators over the steps that both keep."""

    first: str
    second: str
    steps: int
    """Steps that both keep."""
    signed: int
    """Those of them to which both give an advantage other than 0."""
    same_sign: float | None
    """Share of the signed steps whose advantages have the same sign; None without such steps."""
    rank_correlation: float | None
    """Spearman's correlation over all steps that both keep; None if one of them gives all the same advantage."""


def agreement(first: Credit, second: Credit) -> Agreement:
    """Compare two estimators. Advantages at rounding level count as 0."""
    both = first.keep & second.keep
    a, b = (np.where(np.abs(x) > ROUNDING, x, 0.0) for x in (c.values["advantage"][both] for c in (first, second)))
    signed = (a != 0) & (b != 0)
    same = np.sign(a[signed]) == np.sign(b[signed])
    ranked = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return Agreement(
        first=first.estimator,
        second=second.estimator,
        steps=int(both.sum()),
        signed=int(signed.sum()),
        same_sign=float(same.mean()) if len(same) else None,
        rank_correlation=float(spearmanr(a, b).statistic) if ranked else None,
    )


def agreements(credits: Sequence[Credit]) -> list[Agreement]:
    """Compare each pair."""
    return [agreement(first, second) for first, second in combinations(credits, 2)]
