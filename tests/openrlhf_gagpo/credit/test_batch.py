"""``StepBatch``: what it accepts, what it refuses and how it names the row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo.credit import StepBatch, get
from openrlhf_gagpo.credit.layout import _number_cells
from openrlhf_gagpo.errors import StepBatchError
from openrlhf_gagpo.rollout.types import Episode, Step


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
        ({"step": [0, 2, 3, 0, 1]}, r"row 2 \(group 'g', trajectory 't', step 3\): steps before it are missing"),
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
        ({"invalid": [0, 0, -1, 0, 0]}, r"row 2 .*: invalid must be 0 or more"),
        ({"n_tokens": [1, 1.5, 1, 1, 1]}, r"row 1 .*: n_tokens must be a whole number"),
        ({"state": [["A"], "B", "C", "A", "C"]}, "need hashable keys"),
        ({"next_state": ["B", np.zeros(2), "end", "C", "end"]}, "need hashable keys"),
        ({"group": ["g", np.zeros(2), "g", "g", "g"]}, "need hashable keys"),
        (
            {"next_state": ["B", ["C"], "end", "C", "end"]},
            r"row 1 .*: its next_state is not the state of the following",
        ),
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
    shuffled = {name: [column[row] for row in order] for name, column in columns(step=[0, 1, 1, 0, 0]).items()}
    with pytest.raises(StepBatchError, match=r"row 2 \(group 'g', trajectory 'u', step 0\): this step .* twice"):
        StepBatch.from_columns(**shuffled)


def test_open_trajectories_need_the_flag() -> None:
    batch = StepBatch.from_columns(**columns(truncated=[False] * 5), allow_open=True)
    closed = StepBatch.from_columns(**columns())
    np.testing.assert_array_equal(get("gagpo")(batch).advantage, get("gagpo")(closed).advantage)


def test_columns_keep_their_order_and_get_defaults() -> None:
    order = [3, 2, 4, 0, 1]
    batch = StepBatch.from_columns(**{name: [column[row] for row in order] for name, column in columns().items()})
    assert len(batch) == 5
    assert batch.state.tolist() == ["A", "C", "C", "A", "B"]
    assert batch.invalid.tolist() == [0.0] * 5
    assert batch.n_tokens.tolist() == [1] * 5
    assert batch.value is None
    assert batch.step.dtype == np.int64
    assert batch.reward.dtype == np.float64


def test_keys_may_be_numbers_and_are_told_apart_by_type() -> None:
    numbers = {"A": 1, "B": "1", "C": 2, "end": 3}
    batch = StepBatch.from_columns(
        **columns(
            state=[numbers[key] for key in columns()["state"]],
            next_state=[numbers[key] for key in columns()["next_state"]],
            traj=np.array([7, 7, 7, 8, 8]),
        )
    )
    assert get("gagpo")(batch).state_group_size.tolist() == [2, 1, 2, 2, 2]


def test_cells_are_numbered_alike_by_table_and_by_sorting() -> None:
    rng = np.random.default_rng(0)
    group, state = np.sort(rng.integers(0, 9, 200)), rng.integers(0, 30, 200)
    last = np.flatnonzero(np.diff(group, append=9))
    final = rng.integers(0, 40, len(last))
    by_table = _number_cells(group, state, final, last)
    by_sorting = _number_cells(group, np.where(state == 29, 10**6, state), np.where(final == 29, 10**6, final), last)
    np.testing.assert_array_equal(by_table[0].label, by_sorting[0].label)
    np.testing.assert_array_equal(by_table[0].count, by_sorting[0].count)
    np.testing.assert_array_equal(by_table[1], by_sorting[1])


def step(index: int, state: str, following: str, **changes: Any) -> Step:
    fields: dict[str, Any] = {
        "index": index,
        "state_key": state,
        "next_state_key": following,
        "observation": "",
        "action": "",
        "reward": 0.0,
        "terminated": False,
        "truncated": False,
        "format_valid": True,
        "admissible": True,
        "prompt_ids": [1],
        "response_ids": [1, 2, 3],
        "sampling_log_probs": [0.0] * 3,
        "response": "",
    }
    return Step(**(fields | changes))


def episode(steps: list[Step], end_reason: str, trajectory: str = "t") -> Episode:
    return Episode(
        task="task",
        group="g",
        trajectory=trajectory,
        env_seed=0,
        steps=steps,
        end_reason=end_reason,  # type: ignore[arg-type]
    )


def test_from_episodes() -> None:
    won = [step(0, "A", "B", format_valid=False), step(1, "B", "end", reward=1.0, terminated=True, admissible=False)]
    cut = [step(0, "A", "C")]
    episodes = [
        episode(won, "terminated"),
        episode(cut, "prompt_too_long", "u"),
        episode([], "prompt_too_long", "v"),
    ]
    batch = StepBatch.from_episodes(episodes)
    assert batch.traj.tolist() == ["t", "t", "u"]
    assert batch.terminated.tolist() == [False, True, False]
    assert batch.truncated.tolist() == [False, False, True]
    assert batch.n_tokens.tolist() == [3, 3, 3]
    assert batch.invalid.tolist() == [1, 0, 0]
    assert StepBatch.from_episodes(episodes, invalid="action").invalid.tolist() == [0, 1, 0]
    assert StepBatch.from_episodes(episodes, invalid="either").invalid.tolist() == [1, 1, 0]
    assert StepBatch.from_episodes(episodes, invalid=lambda step: step.index == 1).invalid.tolist() == [0, 1, 0]


def test_from_episodes_refuses_faults_and_unknown_rules() -> None:
    fault = episode([step(0, "A", "B")], "env_fault")
    with pytest.raises(StepBatchError, match="episode 't' of group 'g' ended by an environment fault"):
        StepBatch.from_episodes([fault])
    with pytest.raises(StepBatchError, match="unknown rule 'tags'"):
        StepBatch.from_episodes([], invalid="tags")
    with pytest.raises(StepBatchError, match="at least one row"):
        StepBatch.from_episodes([])
