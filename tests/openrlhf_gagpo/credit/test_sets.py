"""``Sets`` and ``Sequences`` against plain loops, empty sets and wrong lengths included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gagpo.credit.sets import Sequences, Sets
from openrlhf_gagpo.errors import EstimatorError

lengths = st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any)


def test_sets_of_labels() -> None:
    sets = Sets.of_labels(np.array([2, 0, 2, 0, 0]), 4)
    assert sets.count.tolist() == [3, 0, 2, 0]
    values = np.array([1.0, 2.0, 5.0, 4.0, 6.0])
    assert sets.sum(values).tolist() == [12, 0, 6, 0]
    assert sets.mean(values).tolist() == [4, 0, 3, 0]
    assert sets.sum(values > 3).tolist() == [2, 0, 1, 0]
    assert sets.expand(np.array([7, 8, 9, 10])).tolist() == [9, 7, 9, 7, 7]
    with pytest.raises(ValueError, match="negative"):
        Sets.of_labels(np.array([0, -1]), 2)


@settings(deadline=None, max_examples=50)
@given(lengths, st.randoms(use_true_random=False))
def test_sequences_are_what_loops_over_their_entries_give(lengths: list[int], random: Any) -> None:
    values = np.array([random.uniform(-3, 3) for _ in range(sum(lengths))])
    decay = np.array([random.uniform(0, 1) for _ in values])
    ends = np.array([random.uniform(-3, 3) for _ in lengths])
    runs = [list(range(stop - n, stop)) for n, stop in zip(lengths, np.cumsum(lengths), strict=True)]

    total, following, last = np.zeros(len(values)), np.zeros(len(values)), np.zeros(len(values), dtype=bool)
    for run, end in zip(runs, ends, strict=True):
        later, later_value, is_last = 0.0, end, True
        for entry in reversed(run):
            later = total[entry] = values[entry] + decay[entry] * later
            following[entry], last[entry] = later_value, is_last
            later_value, is_last = values[entry], False

    sequences = Sequences.of_lengths(np.array(lengths))
    np.testing.assert_allclose(sequences.backward_sum(values, decay), total)
    np.testing.assert_array_equal(sequences.backward_sum(values, 0.0), values)
    np.testing.assert_array_equal(sequences.following(values, ends), following)
    np.testing.assert_array_equal(sequences.following(values)[last], 0.0)
    np.testing.assert_array_equal(sequences.is_last, last)
    np.testing.assert_allclose(sequences.sum(values), [values[run].sum() for run in runs], atol=1e-12)
    np.testing.assert_array_equal(sequences.expand(ends), np.repeat(ends, lengths))
    assert sequences.sum(values > 0).tolist() == [(values[run] > 0).sum() for run in runs]


@pytest.mark.parametrize("sets", [Sets.of_labels(np.array([0, 0, 2]), 4), Sequences.of_lengths(np.array([2, 0, 1, 0]))])
@pytest.mark.parametrize("extra", [-1, 1])
def test_an_array_of_another_length_is_refused(sets: Sets, extra: int) -> None:
    calls: list[tuple[Callable[..., Any], int]] = [(sets.sum, 3), (sets.mean, 3), (sets.expand, 4)]
    if isinstance(sets, Sequences):
        calls += [(sets.following, 3), (lambda values: sets.backward_sum(values, 0.5), 3)]
    for call, length in calls:
        call(np.zeros(length))
        with pytest.raises(EstimatorError, match=f"was given where {length} numbers are needed"):
            call(np.zeros(length + extra))
