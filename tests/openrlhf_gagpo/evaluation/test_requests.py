"""Which episodes an evaluation plays."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.evaluation import evaluation_requests, spread


@given(size=st.integers(0, 50), count=st.none() | st.integers(1, 60))
def test_evaluation_tasks_are_spread_over_the_split(size: int, count: int | None) -> None:
    tasks = [f"task{i:02}" for i in range(size)]
    chosen = spread(tasks, count)
    assert len(chosen) == len(set(chosen)) == (size if count is None else min(size, count))
    assert chosen == sorted(chosen)
    positions = [tasks.index(task) for task in chosen]
    gaps = {later - earlier for earlier, later in pairwise(positions)}
    assert len(gaps) <= 2
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


@pytest.mark.parametrize("samples", [1, 3])
def test_evaluations_are_comparable_between_runs(samples: int) -> None:
    requests = evaluation_requests(["a", "b"], samples, tag=4, seed=1)
    assert [r.task for r in requests] == ["a"] * samples + ["b"] * samples
    other = evaluation_requests(["a", "b"], samples, tag=8, seed=2)
    assert [r.env_seed for r in requests] == [r.env_seed for r in other]
    assert not {r.sampling_seed for r in requests} & {r.sampling_seed for r in other}
    assert len({r.trajectory for r in requests}) == 2 * samples
