"""``CreditResult.of``: order, checks, and what is left out of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo.credit import CreditResult, EstimatorOptions, StepBatch
from openrlhf_gagpo.errors import EstimatorError
from support.step_batches import Trajectory, batch_of, columns_of, shuffled

TWO = [("g", "t", "ABz", [0, 1]), ("h", "u", "Az", [0])]
OPTIONS = EstimatorOptions()


def test_quantities_return_in_the_order_of_the_rows_given() -> None:
    order = np.array([2, 1, 0])
    batch = StepBatch.from_columns(**shuffled({**columns_of(TWO), "n_tokens": [2, 1, 3]}, order))
    assert batch.traj.tolist() == ["u", "t", "t"]
    result = CreditResult.of(
        batch,
        OPTIONS,
        advantage=np.array([1.0, 2.0, 3.0]),
        clip_scale=np.array([0.1, 0.2, 0.3]),
        token_advantage=np.arange(6.0),
        token_value_target=-np.arange(6.0),
    )
    assert result.advantage.tolist() == [1, 3, 2]
    assert result.keep.tolist() == [True] * 3
    assert result.clip_scale is not None
    assert result.clip_scale.tolist() == [0.1, 0.3, 0.2]
    assert result.token_advantage is not None
    assert result.token_advantage.tolist() == [0, 1, 2, 5, 3, 4]
    assert result.token_value_target is not None
    assert result.token_value_target.tolist() == [0, -1, -2, -5, -3, -4]
    assert result.state_group_size.tolist() == [1, 1, 1]
    absent = (result.return_, result.value, result.td_residual, result.value_target)
    assert absent == (None,) * 4


def test_steps_left_out_have_no_advantage() -> None:
    batch = batch_of(TWO, n_tokens=[2, 1, 3])
    given: dict[str, Any] = {"advantage": np.ones(3), "token_advantage": np.ones(6)}
    dropped = CreditResult.of(batch, EstimatorOptions(drop_reward_free_groups=True), **given)
    assert dropped.keep.tolist() == [True, True, False]
    own = CreditResult.of(batch, OPTIONS, keep=np.array([False, True, True]), **given)
    assert own.keep.tolist() == [False, True, True]
    for result in (dropped, own):
        assert result.token_advantage is not None
        np.testing.assert_array_equal(result.advantage, result.keep)
        np.testing.assert_array_equal(result.token_advantage, np.repeat(result.keep, [2, 1, 3]))
        assert result.diagnostics["rows_dropped"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": np.zeros(2)}, r"advantage has shape \(2,\); it must hold one number for each of 3 entries"),
        ({"advantage": np.zeros((3, 1))}, r"advantage has shape \(3, 1\)"),
        ({"advantage": 0.0}, r"advantage has shape \(\)"),
        ({"advantage": None}, "advantage must be an array of numbers, not None"),
        ({"advantage": np.array([0, np.nan, 0])}, "advantage holds a number that is not finite; scale the rewards"),
        ({"value": lambda: np.zeros(3)}, "value must be an array of numbers, not <function"),
        ({"value": np.zeros(6)}, r"value has shape \(6,\)"),
        ({"value": ["a", "b", "c"]}, "value must be an array of numbers, not <U1"),
        ({"return_": np.array([0, np.inf, 0])}, "return_ holds a number that is not finite"),
        ({"td_residual": np.zeros(4)}, "td_residual has shape"),
        ({"token_advantage": np.zeros(3)}, r"token_advantage has shape \(3,\); .* each of 6 entries"),
        ({"token_value_target": np.full(6, np.nan)}, "token_value_target holds a number that is not finite"),
        ({"value_target": np.zeros(6)}, r"value_target has shape \(6,\)"),
        ({"clip_scale": np.array([1, 0, 1])}, "clip_scale holds a number that is not above 0"),
        ({"clip_scale": np.zeros(2)}, r"clip_scale has shape \(2,\)"),
        ({"keep": np.zeros(3)}, "keep must be an array of booleans, not float64"),
        ({"keep": np.zeros(2, dtype=bool)}, r"keep has shape \(2,\)"),
    ],
)
def test_what_is_no_credit_is_refused(changes: dict[str, Any], message: str) -> None:
    batch = batch_of(TWO, n_tokens=[2, 1, 3])
    with pytest.raises(EstimatorError, match=message):
        CreditResult.of(batch, OPTIONS, **({"advantage": np.zeros(3)} | changes))


def test_the_clip_factor_of_trained_steps_is_logged_where_there_is_one() -> None:
    batch = batch_of(TWO, n_tokens=[2, 1, 3])
    given: dict[str, Any] = {"advantage": np.ones(3), "keep": np.array([True, False, True])}
    scaled = CreditResult.of(batch, OPTIONS, **given, clip_scale=np.array([0.8, 9.0, 1.2])).diagnostics
    assert scaled["clip_scale_mean"] == pytest.approx(1.0)
    assert scaled["clip_scale_std"] == pytest.approx(0.2)
    plain = CreditResult.of(batch, OPTIONS, **given).diagnostics
    assert scaled.keys() - plain.keys() == {"clip_scale_mean", "clip_scale_std"}
    nothing = given | {"keep": np.zeros(3, dtype=bool)}
    scaled = CreditResult.of(batch, OPTIONS, **nothing, clip_scale=np.full(3, 2.0)).diagnostics
    assert (scaled["clip_scale_mean"], scaled["clip_scale_std"]) == (1.0, 0.0)


@pytest.mark.parametrize("by_token", [False, True])
def test_quality_of_a_critic_by_hand_in_any_row_order(by_token: bool) -> None:
    """Values 1, 2, 4 miss one of the targets 0, 2, 4 by 1."""
    columns = {**columns_of(TWO), "value": [1, 2, 4], "token_value": [1, 2, 4]}
    batch = StepBatch.from_columns(**shuffled({**columns, "n_tokens": [1, 1, 1]}, np.array([2, 0, 1])))
    targets = {"token_value_target" if by_token else "value_target": np.array([4.0, 0, 2])}
    assert batch.required("value").tolist() == [4, 1, 2]
    result = CreditResult.of(
        batch, OPTIONS, advantage=np.zeros(3), value=batch.value, return_=np.array([4.0, 1, 2]), **targets
    )
    error = np.var([1, 0, 0]) / np.var([0, 2, 4])
    assert result.critic_quality == pytest.approx({"explained_variance": 1 - error, "return_explained_variance": 1.0})
    plain = CreditResult.of(batch, OPTIONS, advantage=np.zeros(3), value=batch.value, return_=batch.value)
    assert plain.critic_quality == {}


def test_a_critic_of_targets_that_do_not_vary_explains_nothing() -> None:
    batch = batch_of(TWO, value=[0, 1, 2])
    result = CreditResult.of(batch, OPTIONS, advantage=np.zeros(3), value_target=np.ones(3))
    assert result.critic_quality == {"explained_variance": 0.0}


def _signs(*trajectories: Trajectory, advantage: list[float]) -> dict[str, float]:
    return CreditResult.of(batch_of(trajectories), OPTIONS, advantage=np.array(advantage)).diagnostics


def test_diagnostics_tell_states_with_a_past_from_states_that_differ() -> None:
    zero = [0.0] * 4
    # B is reached from A alone and from C alone, so it does not contain its past.
    met = _signs(("g", "t", "ABz", [0, 1]), ("g", "u", "CBz", [0, 0]), advantage=zero)
    assert (met["rejoined_share"], met["lone_start_share"]) == (0.5, 1.0)
    # A start that is visited again was rejoined.
    again = _signs(("g", "t", "ABAz", [0, 0, 1]), advantage=zero[:3])
    assert (again["rejoined_share"], again["lone_start_share"]) == (2 / 3, 0.0)
    # Histories part and never meet again; the same state in another group is another state.
    past = _signs(("g", "t", ["A", "AB", "z"], [0, 1]), ("g", "u", ["A", "AC", "z"], [0, 0]), advantage=zero)
    assert (past["rejoined_share"], past["lone_start_share"], past["singleton_share"]) == (0.0, 0.0, 0.5)
    apart = _signs(("g", "t", "ABz", [0, 1]), ("h", "u", "CBz", [0, 0]), advantage=zero)
    assert (apart["rejoined_share"], apart["lone_start_share"]) == (0.0, 1.0)


def test_diagnostics_count_groups_that_differ_only_in_penalties() -> None:
    free, paid = ("g", "t", "ABz", [0, 0]), ("h", "u", "ABz", [0, 1])
    assert _signs(free, paid, advantage=[1, -1, 1, -1])["penalty_only_group_share"] == 0.5
    assert _signs(free, paid, advantage=[0, 0, 1, -1])["penalty_only_group_share"] == 0.0
    # One advantage for all steps of a group comes from elsewhere, such as a mean over the batch.
    assert _signs(free, paid, advantage=[-1, -1, 1, 1])["penalty_only_group_share"] == 0.0
