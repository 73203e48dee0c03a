"""What malformed and unrecognised steps cost, and where it counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo import credit
from openrlhf_gagpo.credit.penalty import own_penalty, shaped_rewards, step_penalty
from support.step_batches import batch_of, credit_of

FOUR = [("g", "t", "ABCDz", [0, 0, 0, 1])]
FACTS: dict[str, Any] = {"invalid": [0, 1, 0, 1], "inadmissible": [0, 0, 1, 1]}


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ({}, [0, 0.1, 0, 0.1]),
        ({"inadmissible_penalty": 0.3}, [0, 0.1, 0.3, 0.3]),
        ({"inadmissible_penalty": 0.05}, [0, 0.1, 0.05, 0.1]),
        ({"invalid_penalty": 0.0, "inadmissible_penalty": 0.3}, [0, 0, 0.3, 0.3]),
        ({"invalid_penalty_mode": "none", "inadmissible_penalty": 0.3}, [0, 0, 0, 0]),
    ],
)
def test_a_step_costs_the_larger_of_the_prices_that_apply(prices: dict[str, Any], expected: list[float]) -> None:
    options = credit.EstimatorOptions(**prices)
    assert step_penalty(batch_of(FOUR, **FACTS), options).tolist() == expected
    assert not step_penalty(batch_of(FOUR), options).any()


def test_the_mode_says_where_a_penalty_counts() -> None:
    batch = batch_of(FOUR, **FACTS)
    cost = np.array([0, 0.1, 0, 0.1])
    for mode, in_rewards, own in (("reward", cost, 0 * cost), ("local", 0 * cost, cost), ("none", 0 * cost, 0 * cost)):
        options = credit.EstimatorOptions(invalid_penalty_mode=mode)
        np.testing.assert_array_equal(shaped_rewards(batch, options), batch.reward - in_rewards)
        np.testing.assert_array_equal(own_penalty(batch, options), own)


@pytest.mark.parametrize("name", credit.names())
@pytest.mark.parametrize("mode", ["reward", "local"])
def test_both_prices_reach_every_estimator(name: str, mode: str) -> None:
    trajectories = [*FOUR, ("g", "u", "ABCDz", [0, 0, 0, 0]), ("g", "v", "ABCDz", [0, 0, 0, 3])]
    columns = {"ig": [0.0] * 12, "value": [0.0] * 12}
    options = {"invalid_penalty": 0.25, "inadmissible_penalty": 0.25, "invalid_penalty_mode": mode}
    found = [
        credit_of(batch_of(trajectories, **columns, **{fact: [1, 1, *[0] * 10]}), name, **options).advantage
        for fact in ("invalid", "inadmissible")
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.allclose(found[0], credit_of(batch_of(trajectories, **columns), name, **options).advantage)


def test_penalty_reaches_earlier_steps_only_as_part_of_the_reward() -> None:
    batch = batch_of([("g", "t", "ABz", [0, 1])], invalid=[0, 1])
    returns = {
        mode: credit_of(batch, "gagpo", gamma=1.0, invalid_penalty=0.5, invalid_penalty_mode=mode).return_
        for mode in ("reward", "local", "none")
    }
    assert {mode: values.tolist() for mode, values in returns.items() if values is not None} == {
        "reward": [0.5, 0.5],
        "local": [1.0, 0.5],
        "none": [1.0, 1.0],
    }


@pytest.mark.parametrize("name", credit.names())
def test_defaults_of_the_modes(name: str) -> None:
    assert credit.get(name).options_cls().invalid_penalty_mode == ("reward" if name in ("gae", "gagpo") else "local")
