"""``StepBatch``: what it accepts, what it refuses and how it names the row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo.credit import MODEL_COLUMNS, StepBatch, get
from openrlhf_gagpo.errors import EstimatorError, StepBatchError
from support.step_batches import shuffled


def columns(**changes: Any) -> dict[str, Any]:
    """Two trajectories of one group: A B C (3 steps) and A C (2 steps)."""
    base: dict[str, Any] = {
        "group": ["g"] * 5,
        "traj": ["t", "t", "t", "u", "u"],
        "step": [0, 1, 2, 0, 1],
        "state": ["A", "B", "C", "A", "C"],
        "next_state": ["B", "C", "end", "C", "end"],
        "reward": [0.0, 0.0, 1.0, 0.0, 0.0],
        "terminated": [False, False, True, False, False],
        "truncated": [False, False, False, False, True],
    }
    return base | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": [0, 1, 1, 0, 1]}, r"row 2 \(group 'g', trajectory 't', step 1\): this step .* twice"),
        ({"step": [0, 2, 3, 0, 1]}, r"row 1 \(group 'g', trajectory 't', step 2\): steps before it are missing"),
        ({"step": [0, 1, 2, -1, 1]}, r"row 3 .*: steps count from 0"),
        ({"step": [0.0, 1.0, 2.0, 0.0, 1.0]}, "column step must hold integers"),
        ({"group": ["g", "g", "h", "g", "g"]}, r"row 2 \(group 'h', trajectory 't', step 2\): .* another group"),
        ({"terminated": [False, True, True, False, False]}, r"row 1 .*: it ends the episode but .* later steps"),
        ({"truncated": [False, False, True, False, True]}, r"row 2 .*: both terminated and truncated"),
        ({"truncated": [False] * 5}, r"row 4 .*: the last step is neither terminated nor truncated"),
        ({"next_state": ["B", "D", "end", "C", "end"]}, r"row 1 .*: its next_state is not the state of the following"),
        ({"reward": [0, 0, float("inf"), 0, 0]}, r"row 2 .*: reward is not a finite number"),
        ({"value": [0, 0, 0, float("nan"), 0]}, r"row 3 .*: value is not a finite number"),
        ({"reward": [0, 0]}, r"column reward has shape \(2,\) but step has 5 rows"),
        ({"reward": ["a"] * 5}, "column reward must hold numbers"),
        ({"state": ["A"]}, "column state has 1 rows but step has 5"),
        ({"truncated": [True]}, "column truncated has shape"),
        ({"invalid": [0, 0, -1, 0, 0]}, r"row 2 .*: invalid is neither true nor false"),
        ({"success": [1, 1, 0, 0, 0]}, r"row 2 .*: its success is not that of the trajectory's first step"),
        ({"success": [1, 1, 1, 2, 2]}, r"row 3 .*: success is neither true nor false"),
        ({"action": ["go"]}, "column action has 1 rows but step has 5"),
        ({"action": ["go", "go", 1, "go", "go"]}, "keys in action must be all str or all int"),
        ({"token_value": [0.0] * 4}, r"column token_value has shape \(4,\) but n_tokens sums to 5"),
        ({"inadmissible": [0, 0, 0, 0.5, 0]}, r"row 3 .*: inadmissible is neither true nor false"),
        ({"terminated": [False, False, "True", False, False]}, r"row 2 .*: terminated is neither true nor false"),
        ({"terminated": ["False"] * 5}, r"row 0 .*: terminated is neither true nor false"),
        ({"terminated": np.array(["False"] * 5)}, r"row 0 .*: terminated is neither true nor false"),
        ({"truncated": [0, 0, 0, float("nan"), 1]}, r"row 3 .*: truncated is neither true nor false"),
        ({"truncated": [0, 0, None, 0, 1]}, r"row 2 .*: truncated is neither true nor false"),
        ({"truncated": [0, 0, [0], 0, 1]}, "column truncated must hold true or false"),
        ({"reward": ["0", "0", "1", "0", "0"]}, "column reward must hold numbers"),
        ({"ig": [0, float("nan"), float("inf"), 0, 0]}, r"row 2 .*: ig is not a finite number"),
        ({"n_tokens": [1, 1, -1, 1, 1]}, r"row 2 .*: n_tokens must be a whole number"),
        ({"log_prob": [0.0] * 4}, r"column log_prob has shape \(4,\) but n_tokens sums to 5"),
        (
            {"n_tokens": [2, 0, 1, 2, 0], "log_prob": [0, 0, 0, float("nan"), 0]},
            r"row 3 .*: log_prob of one of its tokens is not a finite number",
        ),
        ({"state": [1, True, 2, 1, 2], "next_state": [True, 2, 3, 2, 3]}, "must be all str or all int, not bool, int"),
        ({"state": [1, 2, 3, 1, 3], "next_state": [2.0, 3.0, 4.0, 3.0, 4.0]}, "not float, int; use text keys"),
        ({"group": [1, 1, 1, True, True]}, "keys in group must be all str or all int, not bool, int"),
        ({"traj": [0, 0, 0, "0", "0"]}, "keys in traj must be all str or all int, not int, str"),
        ({"traj": [("a",), ("a",), ("a",), "u", "u"]}, "keys in traj must be all str or all int, not str, tuple"),
        ({"n_tokens": [1, 1.5, 1, 1, 1]}, r"row 1 .*: n_tokens must be a whole number"),
        ({"state": [["A"], "B", "C", "A", "C"]}, "keys in state and next_state must be all str or all int"),
        ({"next_state": ["B", np.zeros(2), "end", "C", "end"]}, "keys in state and next_state must be all str or all"),
        (
            {"terminated": [[False], [False], [True, True], [False], [False]]},
            "column terminated must hold true or false",
        ),
        ({name: [] for name in columns()}, "at least one row"),
    ],
)
def test_inconsistent_rows_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StepBatchError, match=message):
        StepBatch.from_columns(**columns(**changes))


def test_first_of_two_faulty_rows_is_named_in_any_order() -> None:
    order = [4, 1, 3, 0, 2]
    given = shuffled(columns(step=[0, 1, 1, 0, 0]), np.array(order))
    with pytest.raises(StepBatchError, match=r"row 2 \(group 'g', trajectory 'u', step 0\): this step .* twice"):
        StepBatch.from_columns(**given)


def test_open_trajectories_need_the_flag() -> None:
    batch = StepBatch.from_columns(**columns(truncated=[False] * 5), allow_open=True)
    closed = StepBatch.from_columns(**columns())
    np.testing.assert_array_equal(get("gagpo")(batch).advantage, get("gagpo")(closed).advantage)


def test_rows_are_sorted_once_and_columns_get_defaults() -> None:
    order = [4, 2, 3, 0, 1]
    batch = StepBatch.from_columns(**shuffled(columns(), np.array(order)))
    assert len(batch) == 5
    assert batch.order.tolist() == [2, 0, 3, 4, 1]
    assert batch.traj.tolist() == ["u", "u", "t", "t", "t"]
    assert batch.step.tolist() == [0, 1, 0, 1, 2]
    assert batch.state.tolist() == ["A", "C", "A", "B", "C"]
    assert batch.next_state.tolist() == ["C", "end", "B", "C", "end"]
    assert batch.restore(batch.state).tolist() == [columns()["state"][row] for row in order]
    assert not batch.invalid.any()
    assert not batch.inadmissible.any()
    assert batch.n_tokens.tolist() == [1] * 5
    assert all(getattr(batch, name) is None for name in MODEL_COLUMNS)
    assert batch.step.dtype == np.int64
    assert batch.reward.dtype == np.float64
    assert batch.terminated.dtype == np.bool_


def test_groups_stay_together_in_the_order_of_their_first_rows() -> None:
    batch = StepBatch.from_columns(**columns(group=["h", "h", "h", "g", "g"], traj=["t", "t", "t", "a", "a"]))
    assert batch.groups.count.tolist() == [3, 2]
    interleaved = StepBatch.from_columns(
        group=["h", "g", "h"],
        traj=["1", "2", "3"],
        step=[0, 0, 0],
        state=["A", "A", "A"],
        next_state=["A", "B", "C"],
        reward=[1, 2, 3],
        terminated=[1, 1, 1],
        truncated=[0, 0, 0],
    )
    assert interleaved.traj.tolist() == ["1", "3", "2"]
    assert interleaved.trajectory_groups.count.tolist() == [2, 1]
    assert interleaved.states.count.tolist() == [2, 0, 1, 0]  # the end states B and C are numbered, and not visited
    assert interleaved.states.expand(np.array([5, 6, 7, 8])).tolist() == [5, 5, 7]
    assert interleaved.final_state.tolist() == [0, 1, 3]


def test_keys_may_be_whole_numbers() -> None:
    numbers = {"A": 1, "B": 7, "C": 2, "end": 3}
    batch = StepBatch.from_columns(
        **columns(
            state=[numbers[key] for key in columns()["state"]],
            next_state=np.array([numbers[key] for key in columns()["next_state"]]),
            traj=np.array([7, 7, 7, 8, 8]),
        )
    )
    assert get("gagpo")(batch).state_group_size.tolist() == [2, 1, 2, 2, 2]


@pytest.mark.parametrize("kind", [bool, int, float, np.array])
def test_switches_may_be_numbers(kind: Any) -> None:
    values = [False, False, True, False, False]
    given = np.array(values) if kind is np.array else [kind(value) for value in values]
    assert StepBatch.from_columns(**columns(terminated=given)).terminated.tolist() == values
    assert StepBatch.from_columns(**columns(invalid=given)).invalid.tolist() == values


def test_model_columns_follow_their_rows() -> None:
    given = columns(
        value=[1, 2, 3, 4, 5],
        ig=[0.1, float("nan"), 0.3, 0.4, 0.5],
        n_tokens=[2, 0, 1, 2, 3],
        log_prob=[-0.1, -0.2, -2.1, -3.1, -3.2, -4.1, -4.2, -4.3],
    )
    batch = StepBatch.from_columns(**shuffled(given, np.array([4, 2, 3, 0, 1])))
    assert batch.required("value").tolist() == [4, 5, 1, 2, 3]
    np.testing.assert_array_equal(batch.required("ig"), [0.4, 0.5, 0.1, np.nan, 0.3])
    log_prob = batch.required("log_prob")
    assert log_prob.tolist() == [-3.1, -3.2, -4.1, -4.2, -4.3, -0.1, -0.2, -2.1]
    assert batch.tokens.count.tolist() == [2, 3, 2, 0, 1]
    assert batch.restore_tokens(log_prob).tolist() == [-4.1, -4.2, -4.3, -2.1, -3.1, -3.2, -0.1, -0.2]
    np.testing.assert_allclose(batch.tokens.sum(log_prob), [-6.3, -12.6, -0.3, 0, -2.1])
    with pytest.raises(EstimatorError, match="no column value"):
        StepBatch.from_columns(**columns()).required("value")


def test_facts_that_may_be_unknown_follow_their_rows() -> None:
    given = columns(action=["a", "b", "c", "d", "e"], success=[True, True, True, False, False])
    batch = StepBatch.from_columns(**shuffled(given, np.array([4, 2, 3, 0, 1])))
    assert batch.required("action").tolist() == ["d", "e", "a", "b", "c"]
    assert batch.required("success").tolist() == [False, False, True, True, True]
    with pytest.raises(EstimatorError, match="no column action; build the batch with it"):
        StepBatch.from_columns(**columns()).required("action")


def test_steps_without_trained_tokens() -> None:
    batch = StepBatch.from_columns(**columns(n_tokens=[0] * 5, log_prob=[]))
    assert batch.tokens.sum(batch.required("log_prob")).tolist() == [0] * 5
    assert not get("reinforce_baseline")(batch).advantage.any()
