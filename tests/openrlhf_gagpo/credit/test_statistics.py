"""Statistics per set, and the rule for sets without spread."""

from __future__ import annotations

import numpy as np
import pytest

from openrlhf_gagpo.credit.sets import Sets
from openrlhf_gagpo.credit.statistics import centred, standardised, statistics_of

TWO = Sets.of_labels(np.array([0, 1, 0, 1, 0]), 2)


@pytest.mark.parametrize("ddof", [0, 1])
def test_mean_and_deviation_per_set(ddof: int) -> None:
    values = np.array([1.0, 10.0, 2.0, 14.0, 6.0])
    found = statistics_of(values, TWO, ddof)
    np.testing.assert_allclose(found.mean, [3, 12])
    np.testing.assert_allclose(found.std, [values[::2].std(ddof=ddof), values[1::2].std(ddof=ddof)])
    np.testing.assert_allclose(centred(values, TWO, found), [-2, -2, -1, 2, 3])
    expected = (values - found.mean[TWO.label]) / found.std[TWO.label]
    np.testing.assert_allclose(standardised(values, TWO, found), expected, rtol=1e-5)


@pytest.mark.parametrize("magnitude", [0.1, 1 / 3, 1e7 / 3])
def test_rounding_noise_is_no_spread(magnitude: float) -> None:
    values = magnitude * np.array([1.0, 1.0, 1.0 + 1e-15, 1.0, 1.0 - 1e-15])
    statistics = statistics_of(values, TWO)
    assert not centred(values, TWO, statistics).any()
    assert not standardised(values, TWO, statistics).any()


def test_other_entries_keep_their_deviation_from_a_set_without_spread() -> None:
    flat = statistics_of(np.full(5, 2.0), TWO)
    np.testing.assert_allclose(standardised(np.array([2.0, 2.0, 1.9, 2.0, 2.0]), TWO, flat), [0, 0, -0.1, 0, 0])


def test_sets_with_one_entry_or_none() -> None:
    sets = Sets.of_labels(np.array([0]), 2)
    statistics = statistics_of(np.array([5.0]), sets)
    assert statistics.mean.tolist() == [5, 0]
    assert statistics.std.tolist() == [0, 0]
    assert standardised(np.array([5.0]), sets, statistics).tolist() == [0]
