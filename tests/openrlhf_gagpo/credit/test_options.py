"""Options of the estimators: what all have, what is shared, what is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from openrlhf_gagpo import credit
from openrlhf_gagpo.errors import EstimatorError

COMMON = {item.name for item in fields(credit.EstimatorOptions)}


@pytest.mark.parametrize("name", credit.names())
def test_every_estimator_has_the_common_options(name: str) -> None:
    assert {item.name for item in fields(credit.get(name).options_cls)} >= COMMON


def test_the_common_options() -> None:
    penalties = {"invalid_penalty", "inadmissible_penalty", "invalid_penalty_mode"}
    assert penalties | {"drop_reward_free_groups", "statistics"} == COMMON


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gagpo", {"normalize": "row"}, "normalize is 'row'; choose one of group, batch, none"),
        ("gagpo", {"gamma": 1.5}, "gamma is 1.5; it must lie between 0 and 1"),
        ("gigpo", {"gigpo_mode": "std"}, "gigpo_mode"),
        ("grpo", {"invalid_penalty": -1.0}, "invalid_penalty"),
        ("grpo", {"inadmissible_penalty": -1.0}, "inadmissible_penalty is -1.0; it must lie between 0 and inf"),
        ("rloo", {"invalid_penalty_mode": "all"}, "invalid_penalty_mode is 'all'; choose one of reward, local, none"),
        ("gagpo", {"lambd": float("nan")}, "lambd"),
        ("gagpo", {"broadcast_coef": float("nan")}, "broadcast_coef is nan; it must be a finite number"),
        ("gagpo", {"invalid_penalty": float("inf")}, "invalid_penalty is inf; it must be a finite number"),
        ("gigpo", {"step_coef": float("-inf")}, "step_coef is -inf; it must be a finite number"),
        ("gagpo", {"monte_carlo": True, "truncation": "bootstrap"}, "monte_carlo uses no later value"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        credit.get(name).options_cls(**options)


def test_a_shared_option_must_exist() -> None:
    with pytest.raises(EstimatorError, match="no shared option is called 'gama'"):
        credit.option("gama", 0.95)
