"""How close an estimator's advantages are to the true ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr

from openrlhf_gagpo.credit.sets import Bools, Floats, Ints
from openrlhf_gagpo.credit.statistics import ROUNDING

__all__ = ["BUCKETS", "Errors", "Findings", "Score", "Truth", "score", "state_group_sizes"]

BUCKETS: Mapping[str, tuple[int, float]] = {"1": (1, 1), "2-3": (2, 3), "4-7": (4, 7), "8+": (8, np.inf)}
"""Sizes of state groups that errors are reported for: name -> smallest and largest."""


@dataclass(frozen=True)
class Truth:
    """The true values at N steps, for one discount factor; NaN at steps for which none was found."""

    gamma: float
    value: Floats
    """(N,) V of the state, with the steps left known."""
    advantage: Floats
    """(N,) Q - V of the action that was taken."""
    value_error: Floats
    """(N,) how far ``value`` may be off: a bound, or a standard error if values are estimates."""
    advantage_error: Floats
    """(N,) the same for ``advantage``."""
    margin: float = 1.0
    """Number of errors beyond which a sign is certain: 1 of a bound, and more of a standard error."""

    @property
    def smallest_certain(self) -> Floats:
        """(N,) size beyond which the sign of an advantage is certain."""
        bound = self.margin * self.advantage_error
        # Continuations that all end alike have no spread, which does not make them right.
        estimated = self.margin > 1
        return np.where(self.advantage_error > 0, bound, np.inf) if estimated else bound

    @property
    def known(self) -> Bools:
        """(N,) whether the step has a truth."""
        found: Bools = ~np.isnan(self.value)
        return found


@dataclass(frozen=True)
class Findings:
    """The truth at the steps of a source, by whichever way it was found."""

    truths: Sequence[Truth]
    """One per discount factor."""
    note: str
    """How exact the truth is, as a sentence."""
    cosines: Sequence[Sequence[float | None]] | None = None
    """Per discount factor and credit, the cosine between both policy gradients; None without exact advantages."""


@dataclass(frozen=True)
class Errors:
    """Differences to the truth over the steps of one bucket."""

    steps: int
    bias: float | None
    """Mean difference; None without steps."""
    variance: float | None
    """Variance of the difference; None without steps."""


@dataclass(frozen=True)
class Score:
    """Agreement of one column of numbers with the truth."""

    name: str
    gamma: float
    steps: int
    signed: int
    """Steps at which the given number is other than 0, and the truth by more than it may be off."""
    sign_accuracy: float | None
    """Share of the signed steps at which the signs are equal."""
    pearson: float | None
    spearman: float | None
    errors: Mapping[str, Errors]
    """By name in ``BUCKETS``."""
    cosine: float | None = None
    """Cosine between the policy gradients of both; None if either is 0, or if the column is not an advantage."""


def state_group_sizes(groups: Sequence[str], states: Sequence[str]) -> Ints:
    """Return for each step how many steps of its rollout group were taken in its state, itself included."""
    pairs = list(zip(groups, states, strict=True))
    number: dict[tuple[str, str], int] = {}
    which = np.array([number.setdefault(pair, len(number)) for pair in pairs], dtype=np.int64)
    sizes: Ints = np.bincount(which)[which] if len(which) else which
    return sizes


def score(
    name: str,
    gamma: float,
    given: Floats,
    true: Floats,
    error: Floats,
    keep: Bools,
    sizes: Ints,
    *,
    scaled: bool,
    cosine: float | None = None,
) -> Score:
    """Compare ``given`` with ``true`` over the steps to ``keep``; numbers at rounding level count as 0.

    Args:
        given, true: (N,).
        error: (N,) how far ``true`` may be off.
        sizes: (N,) from ``state_group_sizes``.
        scaled: whether ``given`` gets the root mean square of ``true`` before differences are taken. An advantage's
            scale is arbitrary, since estimators normalise it and optimizers do too; a value's is not.
    """
    a, b = (np.where(np.abs(x) > ROUNDING, x, 0.0) for x in (given[keep], true[keep]))
    signed = (a != 0) & (np.abs(b) > error[keep]) & (b != 0)
    ranked = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    size = float(np.sqrt(np.mean(a**2))) if len(a) else 0.0
    factor = float(np.sqrt(np.mean(b**2))) / size if scaled and size > 0 else 1.0
    return Score(
        name=name,
        gamma=gamma,
        steps=len(a),
        signed=int(signed.sum()),
        sign_accuracy=float(np.mean(np.sign(a[signed]) == np.sign(b[signed]))) if signed.any() else None,
        pearson=float(pearsonr(a, b).statistic) if ranked else None,
        spearman=float(spearmanr(a, b).statistic) if ranked else None,
        errors=_by_size(factor * a - b, sizes[keep]),
        cosine=cosine,
    )


def _by_size(difference: Floats, sizes: Ints) -> dict[str, Errors]:
    found = {}
    for name, (low, high) in BUCKETS.items():
        inside = difference[(sizes >= low) & (sizes <= high)]
        some = len(inside) > 0
        found[name] = Errors(len(inside), float(inside.mean()) if some else None, float(inside.var()) if some else None)
    return found
