"""All intervals and tests that this package reports, in one place.

Tests and intervals over seeds use scipy, which is imported when one is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Estimate",
    "PairedTest",
    "bootstrap_interval",
    "holm",
    "mean",
    "mean_interval",
    "pairs_for_power",
    "paired_test",
    "pass_at_k",
    "standard_deviation",
    "wilson_interval",
]

_Z95 = 1.959963984540054
"""97.5th percentile of the standard normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; the ends are NaN if there are too few values to estimate the spread."""

    mean: float
    low: float
    high: float
    count: int
    """Number of values averaged."""


@dataclass(frozen=True)
class PairedTest:
    """Mean of paired differences and the two-sided p value of a paired t test; NaN if there are too few pairs."""

    difference: Estimate
    p_value: float


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean, or NaN without values."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else math.nan


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion, in [0, 1] (Wilson 1927, without continuity correction).

    With ``n`` 0 it is (0, 1). Raises ``ValueError`` unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n, got {successes} of {n}.")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the exact bounds are 0 and 1, which rounding would miss slightly.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mean_interval(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values, such as one per seed, with its 95 % t interval."""
    count = len(values)
    centre = mean(values)
    if count < 2:
        return Estimate(centre, math.nan, math.nan, count)
    from scipy.stats import t

    half = float(t.ppf(0.975, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(centre, centre - half, centre + half, count)


def pass_at_k(samples: int, successes: int, k: int) -> float:
    """Return the probability that at least one of ``k`` samples of a task succeeds, 1 - C(n - c, k) / C(n, k).

    The estimate is unbiased (Chen et al. 2021, arXiv 2107.03374, equation 1). Raises ``ValueError`` unless
    0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= successes <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {successes} successes in {samples} samples is not defined.")
    return 1.0 - math.comb(samples - successes, k) / math.comb(samples, k)


def bootstrap_interval(values: Sequence[float], seed: int = 0, resamples: int = 10_000) -> Estimate:
    """Return the mean of independent values with its 95 % percentile interval over resampled means."""
    count = len(values)
    centre = mean(values)
    if count < 2:
        return Estimate(centre, math.nan, math.nan, count)
    draws = np.random.default_rng(seed).choice(np.asarray(values, dtype=np.float64), (resamples, count))
    low, high = np.quantile(draws.mean(axis=1), [0.025, 0.975])
    return Estimate(centre, float(low), float(high), count)


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Run a paired t test of ``first - second``, such as two algorithms on the same seeds.

    Raises:
        ValueError: the two have different lengths.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    estimate = mean_interval(differences)
    if len(differences) < 2:
        return PairedTest(estimate, math.nan)
    if len(set(differences)) == 1:
        # Without spread, t is infinite or all differences are 0.
        return PairedTest(estimate, 1.0 if differences[0] == 0 else 0.0)
    from scipy.stats import ttest_rel

    return PairedTest(estimate, float(ttest_rel(first, second).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values of several tests after Holm's step-down correction, in their order (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def standard_deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample (divisor n - 1); NaN with fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def pairs_for_power(difference: float, spread: float, *, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Return the pairs with which a two-sided paired t test finds a difference with the given power.

    The power follows from the noncentral t distribution (Cohen, Statistical Power Analysis for the Behavioral
    Sciences, 1988). A difference that was estimated from few pairs gives a number as uncertain as itself.

    Args:
        difference: mean of the paired differences.
        spread: their standard deviation.

    Returns:
        None if no number of pairs up to a million is enough, as for a difference of 0.
    """
    if not (math.isfinite(difference) and math.isfinite(spread)) or difference == 0:
        return None
    if spread == 0:
        return 2
    effect = abs(difference) / spread
    low, high = 1, 2
    while _paired_power(effect, high, alpha) < power:
        low, high = high, 2 * high
        if high > 2_000_000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _paired_power(effect, middle, alpha) >= power else (middle, high)
    return high


def _paired_power(effect: float, pairs: int, alpha: float) -> float:
    """Return the power of a two-sided paired t test for a difference of ``effect`` standard deviations."""
    from scipy.stats import nct, t

    free = pairs - 1
    edge, shift = t.ppf(1 - alpha / 2, free), effect * math.sqrt(pairs)
    # Far in the other tail the noncentral distribution underflows to NaN, where its share is 0.
    return float(nct.sf(edge, free, shift) + np.nan_to_num(nct.cdf(-edge, free, shift)))
