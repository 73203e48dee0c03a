from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.stats import success_by_category, wilson_interval
from support.report_runs import episode


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


def test_success_by_category_leaves_faulted_out() -> None:
    played = [episode(n, success=n < 3) for n in range(6)]
    played[1].end_reason = "env_fault"
    cool, heat = success_by_category(played)
    assert (cool.category, cool.successes, cool.episodes) == ("cool", 2, 3)
    assert (heat.category, heat.successes, heat.episodes) == ("heat", 0, 2)
    assert cool.share == pytest.approx(2 / 3)
    assert heat.interval[0] == 0.0
