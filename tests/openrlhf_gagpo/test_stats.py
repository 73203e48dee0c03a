from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.stats import (
    bootstrap_interval,
    holm,
    mean,
    mean_interval,
    paired_test,
    pairs_for_power,
    pass_at_k,
    standard_deviation,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (5, 10, 0.236593, 0.763407), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_against_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_share_and_mirrors(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= (successes / n if n else 0.5) <= high <= 1
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson_interval(successes, n)


def test_t_interval_against_known_values() -> None:
    estimate = mean_interval([1.0, 2.0, 3.0, 4.0])
    # 3.182446 standard errors of 0.645497 on either side.
    assert (estimate.mean, estimate.count) == (2.5, 4)
    assert (estimate.low, estimate.high) == pytest.approx((2.5 - 2.054260, 2.5 + 2.054260), abs=1e-5)
    lone = mean_interval([3.0])
    assert lone.mean == 3.0
    assert math.isnan(lone.low)
    assert math.isnan(mean([]))


def test_bootstrap_interval_contains_the_mean_and_repeats() -> None:
    values = [0.1, 0.5, 0.4, 0.9, 0.3]
    estimate = bootstrap_interval(values, seed=1)
    assert min(values) <= estimate.low < estimate.mean < estimate.high <= max(values)
    assert estimate == bootstrap_interval(values, seed=1)
    # About a normal interval with the population spread.
    half = 1.96 * 0.2653 / math.sqrt(5)
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)


def test_paired_test_against_known_values() -> None:
    # Student's sleep data (1908): t = -4.0621 with 9 degrees of freedom.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    test = paired_test(first, second)
    assert test.difference.mean == pytest.approx(-1.58)
    assert test.p_value == pytest.approx(0.002833, abs=1e-6)
    assert paired_test([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    assert math.isnan(paired_test([1.0], [2.0]).p_value)
    with pytest.raises(ValueError, match="zip"):
        paired_test([1.0], [1.0, 2.0])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_raises_p_values_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert all(corrected[a] <= corrected[b] for a, b in pairwise(order))


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_pairs_for_80_per_cent_power_against_published_tables(effect: float, pairs: int) -> None:
    assert pairs_for_power(effect, 1.0) == pairs_for_power(-3 * effect, 3.0) == pairs


def test_pairs_for_power_against_its_definition() -> None:
    from scipy.stats import nct, t

    for effect, power in ((0.35, 0.8), (2.4, 0.8), (0.5, 0.95)):
        pairs = pairs_for_power(effect, 1.0, power=power)
        assert pairs is not None
        reached = [
            nct.sf(t.ppf(0.975, n - 1), n - 1, effect * n**0.5) + nct.cdf(-t.ppf(0.975, n - 1), n - 1, effect * n**0.5)
            for n in (pairs - 1, pairs)
        ]
        assert reached[0] < power <= reached[1]
    # With 54 pairs, half a standard deviation is found in 95 of 100 studies.
    assert pairs_for_power(0.5, 1.0, power=0.95) == 54


def test_pairs_for_power_without_an_answer() -> None:
    assert pairs_for_power(0.0, 1.0) is None
    assert pairs_for_power(math.nan, 1.0) is None
    assert pairs_for_power(1e-6, 1.0) is None
    assert pairs_for_power(0.1, 0.0) == 2


def test_standard_deviation_of_a_sample() -> None:
    assert standard_deviation([1.0, 2.0, 3.0, 4.0]) == pytest.approx((5 / 3) ** 0.5)
    assert math.isnan(standard_deviation([1.0]))


@pytest.mark.parametrize(("samples", "successes"), [(1, 0), (1, 1), (5, 0), (5, 2), (5, 5), (7, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_success(samples: int, successes: int) -> None:
    outcomes = [True] * successes + [False] * (samples - successes)
    for k in range(1, samples + 1):
        subsets = list(combinations(outcomes, k))
        assert pass_at_k(samples, successes, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("samples", "successes", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_what_is_not_defined(samples: int, successes: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(samples, successes, k)
