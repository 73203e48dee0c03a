"""States with similar texts: against a plain loop, in any row order, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gagpo import credit
from openrlhf_gagpo.credit.similarity import similar_states
from openrlhf_gagpo.errors import EstimatorError
from support.plain_credit_turn import similar_sets
from support.step_batches import Trajectory, batch_of, columns_of, credit_of, shuffled, trajectory_lists

TEXTS = {
    "A": "You are in the kitchen. A red apple lies on the table.",
    "B": "You are in the kitchen. A red apple lies on the stove.",
    "C": "You are in the kitchen. A green pear lies on the table.",
    "D": "The garden is empty.",
    "E": "The garden is not empty.",
}


def columns_of_texts(trajectories: list[Trajectory]) -> dict[str, Any]:
    columns = columns_of(trajectories)
    for name in ("state", "next_state"):
        columns[name] = [TEXTS[letter] for letter in columns[name]]
    return columns


@settings(deadline=None, max_examples=60)
@given(trajectory_lists(), st.randoms(use_true_random=False), st.sampled_from([0.5, 0.85, 0.92, 0.97]))
def test_first_fit_as_a_plain_loop_finds_it(
    trajectories: list[Trajectory], draw: random.Random, threshold: float
) -> None:
    columns = columns_of_texts(trajectories)
    columns = shuffled(columns, np.array(draw.sample(range(len(columns["step"])), len(columns["step"]))))
    batch = credit.StepBatch.from_columns(**columns)
    label = batch.restore(similar_states(batch, threshold).label)
    expected = similar_sets(columns, threshold)
    assert len(set(zip(label.tolist(), expected, strict=True))) == len(set(expected)) == len(set(label.tolist()))


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), st.randoms(use_true_random=False))
def test_gigpo_by_similarity_in_any_row_order(trajectories: list[Trajectory], draw: random.Random) -> None:
    columns = columns_of_texts(trajectories)
    count = len(columns["step"])
    order = np.array(draw.sample(range(count), count))

    def advantage(given: dict[str, Any], **options: Any) -> np.ndarray:
        return credit_of(credit.StepBatch.from_columns(**given), "gigpo", **options).advantage

    found = advantage(columns, similarity=0.9)
    np.testing.assert_allclose(found[order], advantage(shuffled(columns, order), similarity=0.9), rtol=1e-9, atol=1e-9)
    renamed = {
        f"{group} {text}": number for number, (group, text) in enumerate(sorted(set(similar_sets(columns, 0.9))))
    }
    merged = columns | {"state": [str(renamed[f"{g} {text}"]) for g, text in similar_sets(columns, 0.9)]}
    at = dict(zip(zip(merged["traj"], merged["step"], strict=True), merged["state"], strict=True))
    steps = zip(merged["traj"], merged["step"], strict=True)
    merged["next_state"] = [at.get((traj, step + 1), "end") for traj, step in steps]
    np.testing.assert_allclose(found, advantage(merged), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(advantage(columns, similarity=1.0), advantage(columns))


def test_representatives_are_the_first_members() -> None:
    # B is like A, C is like A but not like B: with A first all are one set, with B first C is apart.
    columns = columns_of_texts([("g", "t", "ABD", [0, 0]), ("g", "u", "CD", [1])])
    first_a = similar_states(credit.StepBatch.from_columns(**columns), 0.88).label
    assert len(set(first_a.tolist())) == 1
    columns = columns_of_texts([("g", "t", "BAD", [0, 0]), ("g", "u", "CD", [1])])
    first_b = similar_states(credit.StepBatch.from_columns(**columns), 0.88).label
    assert first_b[0] == first_b[1] != first_b[2]


def test_groups_keep_their_states_apart() -> None:
    columns = columns_of_texts([("g", "t", "AD", [0]), ("h", "u", "BD", [1])])
    label = similar_states(credit.StepBatch.from_columns(**columns), 0.5).label
    assert label[0] != label[1]


def test_keys_that_are_numbers_are_refused_below_one() -> None:
    columns = columns_of([("g", "t", "AB", [0]), ("g", "u", "AB", [1])])
    columns |= {"state": [1, 1], "next_state": [2, 2]}
    batch = credit.StepBatch.from_columns(**columns)
    with pytest.raises(EstimatorError, match="gigpo: state keys are numbers, whose similarity is unknown; use text"):
        credit_of(batch, "gigpo", similarity=0.9)
    assert credit_of(batch, "gigpo").advantage.any()


def test_similarity_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"similarity is 1\.5"):
        credit_of(batch_of([("g", "t", "AB", [0])]), "gigpo", similarity=1.5)
