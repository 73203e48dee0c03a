"""PPO's advantage: recorded numbers of the bi-level form, a plain loop, and the cases in which the levels agree."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.credit import CreditResult, StepBatch, get
from openrlhf_gagpo.errors import EstimatorError
from support.paths import REPOSITORY
from support.step_batches import Trajectory, columns_of, shuffled, trajectory_lists

GOLDEN = REPOSITORY.parent / "shared" / "golden" / "estimators" / "more.jsonl"


def credit(columns: dict[str, Any], **options: Any) -> CreditResult:
    estimator = get("gae")
    return estimator(StepBatch.from_columns(**columns), estimator.options_cls(**options))


@pytest.mark.skipif(not GOLDEN.exists(), reason="the recorded numbers are kept outside the repository")
def test_two_levels_match_recorded_numbers_in_any_row_order() -> None:
    for case in map(json.loads, GOLDEN.read_text().splitlines()):
        rows, params = case["rows"], case["params"]
        count = len(rows["step"])
        steps = list(zip(rows["traj"], rows["step"], strict=True))
        state = dict(zip(steps, rows["state"], strict=True))
        columns = {name: rows[name] for name in ("group", "traj", "step", "state", "reward")} | {
            "next_state": [state.get((traj, step + 1), "end") for traj, step in steps],
            "terminated": [(traj, step + 1) not in state for traj, step in steps],
            "truncated": [False] * count,
            "n_tokens": [len(values) for values in rows["values"]],
            "value": [values[0] for values in rows["values"]],
            "token_value": np.concatenate(rows["values"]),
        }
        options = {
            "gae_level": "bilevel",
            "gamma": params["high_gamma"],
            "token_gamma": params["token_gamma"],
            "lambd": params["lam"],
        }
        for order in (np.arange(count), np.random.default_rng(count).permutation(count)):
            for key, whiten in (("bilevel_gae", False), ("bilevel_gae.whiten", True)):
                found = credit(shuffled(columns, order), whiten=whiten, **options).token_advantage
                expected = np.concatenate([case["expected"][key][row] for row in order])
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-7)


@st.composite
def criticised(draw: st.DrawFn) -> dict[str, Any]:
    """Columns of trajectories with responses of 0 to 3 tokens and a critic's value before each."""
    columns: dict[str, Any] = columns_of(draw(trajectory_lists()))
    rows = len(columns["step"])
    number = st.floats(-3, 3).map(lambda value: round(value, 3))
    columns["n_tokens"] = draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))
    columns["value"] = draw(st.lists(number, min_size=rows, max_size=rows))
    total = sum(columns["n_tokens"])
    values = draw(st.lists(number, min_size=total, max_size=total))
    start = np.cumsum(columns["n_tokens"]) - columns["n_tokens"]
    for row, count in enumerate(columns["n_tokens"]):
        if count:
            values[start[row]] = columns["value"][row]
    columns["token_value"] = values
    columns["invalid"] = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    return columns


def plain(columns: dict[str, Any], level: str, gamma: float, lambd: float, token_gamma: float) -> list[list[float]]:
    """Return the unwhitened advantages of every row's tokens, or of the row itself at level "turn"; rows in order."""

    def over(rewards: list[float], values: list[float], discount: float) -> list[float]:
        out, later = [0.0] * len(rewards), 0.0
        for t in reversed(range(len(rewards))):
            after = values[t + 1] if t + 1 < len(values) else 0.0
            later = rewards[t] + discount * after - values[t] + discount * lambd * later
            out[t] = later
        return out

    ends = np.cumsum(columns["n_tokens"])
    tokens = [list(part) for part in np.split(np.array(columns["token_value"], dtype=float), ends[:-1])]
    out: list[list[float]] = [[] for _ in columns["step"]]
    for traj in dict.fromkeys(columns["traj"]):
        rows = [row for row, name in enumerate(columns["traj"]) if name == traj]
        rewards = [columns["reward"][row] - 0.1 * columns["invalid"][row] for row in rows]
        if level == "turn":
            for row, value in zip(rows, over(rewards, [columns["value"][row] for row in rows], gamma), strict=True):
                out[row] = [value]
            continue
        heads = [tokens[row][-1] if tokens[row] else 0.0 for row in rows]
        targets = [a + v for a, v in zip(over(rewards, heads, gamma), heads, strict=True)]
        for row, target in zip(rows, [sum(rewards)] * len(rows) if level == "token" else targets, strict=True):
            if tokens[row]:
                out[row] = over([0.0] * (len(tokens[row]) - 1) + [target], tokens[row], token_gamma)
    return out


@given(criticised(), st.sampled_from(["turn", "bilevel", "token"]), st.integers(0, 2**32 - 1))
def test_matches_a_plain_loop_in_any_row_order(columns: dict[str, Any], level: str, seed: int) -> None:
    expected = plain(columns, level, 0.9, 0.7, 0.8)
    order = np.random.default_rng(seed).permutation(len(columns["step"]))
    result = credit(shuffled(columns, order), gae_level=level, gamma=0.9, lambd=0.7, token_gamma=0.8, whiten=False)
    targets = result.value_target if level == "turn" else result.token_value_target
    advantages = result.advantage if level == "turn" else result.token_advantage
    assert targets is not None
    assert advantages is not None
    flat = np.array([value for row in order for value in expected[row]])
    np.testing.assert_allclose(advantages, flat, atol=1e-9)
    given_values = shuffled(columns, order)["value" if level == "turn" else "token_value"]
    np.testing.assert_allclose(targets, flat + np.array(given_values), atol=1e-9)
    if level != "turn":
        means = [np.mean(expected[row]) if expected[row] else 0.0 for row in order]
        np.testing.assert_allclose(result.advantage, means, atol=1e-9)


@given(criticised())
def test_lambda_1_without_a_critic_is_the_return(columns: dict[str, Any]) -> None:
    columns["value"] = [0.0] * len(columns["step"])
    result = credit(columns, lambd=1.0, gamma=0.9, whiten=False)
    np.testing.assert_allclose(result.advantage, result.return_, atol=1e-9)


@given(trajectory_lists(), st.floats(0, 1), st.floats(0, 1))
def test_levels_agree_on_responses_of_one_token(trajectories: list[Trajectory], gamma: float, lambd: float) -> None:
    """A single token's advantage is its turn's target minus its value, which is the turn's advantage."""
    columns = columns_of(trajectories)
    values = np.linspace(-1, 1, len(columns["step"]))
    extra = {"value": values, "token_value": values, "n_tokens": [1] * len(values)}
    turn, both = (
        credit({**columns, **extra}, gae_level=level, gamma=gamma, lambd=lambd) for level in ("turn", "bilevel")
    )
    np.testing.assert_allclose(turn.advantage, both.advantage, atol=1e-9)


def test_a_truncated_end_has_the_value_0() -> None:
    columns = columns_of([("g", "t", "ABC", [0.0, 0.0])])
    assert columns["truncated"] == [False, True]
    result = credit({**columns, "value": [0.5, 0.8]}, gamma=0.5, lambd=0.0, whiten=False)
    np.testing.assert_allclose(result.advantage, [0.5 * 0.8 - 0.5, -0.8])


def test_levels_below_turns_need_a_value_per_token() -> None:
    columns = columns_of([("g", "t", "AB", [1.0])])
    with pytest.raises(EstimatorError, match="no column token_value; only a model can compute it"):
        credit({**columns, "value": [0.0]}, gae_level="token")
