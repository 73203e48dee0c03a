"""Which groups are kept for training, and that a group stays or goes as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.rollout.filtering import RULES, GroupFilter, keep_informative
from openrlhf_gagpo.rollout.types import Episode
from support.estimator_cases import CASES
from support.report_runs import episode


def _episode(group: str, number: int, rewards: list[float]) -> Episode:
    made = episode(number, success=False, steps=len(rewards))
    steps = [replace(step, reward=reward) for step, reward in zip(made.steps, rewards, strict=True)]
    return replace(made, group=group, trajectory=f"{group}t{number}", steps=steps)


def _kept(scores: list[float], chosen: GroupFilter) -> bool:
    episodes = [_episode("g", number, [score]) for number, score in enumerate(scores)]
    kept = keep_informative(episodes, chosen)
    assert kept in ([], episodes)
    return bool(kept)


@pytest.mark.parametrize(
    ("scores", "bounds", "in_range", "spread"),
    [
        ([0.0, 1.0], (0.0, 1.0), True, True),
        # The ends are outside.
        ([0.0, 0.0], (0.0, 1.0), False, False),
        ([1.0, 1.0], (0.0, 1.0), False, False),
        ([0.5, 0.5], (0.0, 1.0), True, False),
        ([-1.0, 1.0], (0.0, 1.0), False, True),
        ([10.0, 0.0], (0.0, 1.0), False, True),
        ([10.0, 0.0], (0.0, 10.0), True, True),
        ([0.3, 0.1 + 0.2], (0.0, 1.0), True, False),
        ([5.0], (0.0, 10.0), True, False),
    ],
)
def test_rules_by_hand(scores: list[float], bounds: tuple[float, float], in_range: bool, spread: bool) -> None:
    assert _kept(scores, GroupFilter("range", bounds)) is in_range
    assert _kept(scores, GroupFilter("spread", bounds)) is spread


def test_a_score_is_the_sum_of_the_rewards_and_groups_stay_in_order() -> None:
    episodes = [
        _episode("b", 0, [0.0, 0.0, 1.0]),
        _episode("a", 0, [0.5, 0.5]),
        _episode("b", 1, [0.5, 0.25]),
        _episode("a", 1, [1.0]),
    ]
    assert keep_informative(episodes, GroupFilter("spread")) == [episodes[0], episodes[2]]
    assert keep_informative(episodes, GroupFilter("range", (0.0, 0.9))) == [episodes[0], episodes[2]]
    assert keep_informative([], GroupFilter("spread")) == []


@given(
    groups=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4), max_size=5),
    rule=st.sampled_from(sorted(RULES)),
    seed=st.integers(0, 99),
)
def test_the_order_of_episodes_decides_nothing(groups: list[list[float]], rule: str, seed: int) -> None:
    episodes = [_episode(f"g{g}", n, [score]) for g, scores in enumerate(groups) for n, score in enumerate(scores)]
    order = np.random.default_rng(seed).permutation(len(episodes))
    shuffled = keep_informative([episodes[place] for place in order], GroupFilter(rule))
    kept = {made.trajectory for made in keep_informative(episodes, GroupFilter(rule))}
    assert {made.trajectory for made in shuffled} == kept
    for number, scores in enumerate(groups):
        mean = sum(scores) / len(scores)
        expected = 0 < mean < 1 if rule == "range" else len(set(scores)) > 1
        assert (f"g{number}t0" in kept) is expected


@pytest.mark.skipif(not CASES, reason="the recorded cases lie beside the checkout")
@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case['case']}-{case['tag']}") for case in CASES])
@pytest.mark.parametrize("shuffled", [False, True])
def test_recorded_decisions(case: dict[str, Any], shuffled: bool) -> None:
    rows, bounds = case["rows"], tuple(case["params"]["range"])
    order = np.random.default_rng(1).permutation(len(rows["group"])) if shuffled else range(len(rows["group"]))
    rewards: dict[tuple[str, str], list[float]] = {}
    for row in order:
        rewards.setdefault((rows["group"][row], rows["traj"][row]), []).append(rows["reward"][row])
    episodes = [_episode(group, number, values) for number, ((group, _), values) in enumerate(rewards.items())]
    for rule in RULES:
        kept = {made.group for made in keep_informative(episodes, GroupFilter(rule, bounds))}
        expected = case["expected"][f"keep.{rule}"]
        assert [group in kept for group in rows["group"]] == expected, rule
