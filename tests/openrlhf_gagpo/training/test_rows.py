"""The plan of optimizer steps."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gagpo.training.rows import TokenRow, plan_by_prompt, plan_updates
from openrlhf_gagpo.training.settings import BatchSettings


@settings(max_examples=80, deadline=None)
@given(
    count=st.sampled_from([1, 2, 12, 37, 100]) | st.integers(1, 130),
    mini=st.integers(1, 140),
    micro=st.integers(1, 20),
    ranks=st.integers(1, 5),
    epochs=st.integers(1, 3),
    max_tokens=st.none() | st.integers(5, 400),
    seed=st.integers(0, 9),
)
def test_the_plan_of_updates(count, mini, micro, ranks, epochs, max_tokens, seed) -> None:
    rng = np.random.default_rng(seed)
    responses = rng.integers(1, 20, count).tolist()
    lengths = [response + int(prompt) for response, prompt in zip(responses, rng.integers(1, 60, count), strict=True)]
    arguments = {"mini_batch": mini, "micro_batch": micro, "ranks": ranks, "epochs": epochs, "max_tokens": max_tokens}
    plan = plan_updates(lengths, responses, seed=seed, **arguments)
    assert plan == plan_updates(lengths, responses, seed=seed, **arguments)

    steps = math.ceil(count / mini)
    assert len(plan) == epochs * steps
    for epoch in range(epochs):
        piece = plan[epoch * steps : (epoch + 1) * steps]
        assert sorted(row for step in piece for row in step.rows) == list(range(count))
        sizes = [len(step.rows) for step in piece]
        assert max(sizes) <= mini
        assert max(sizes) - min(sizes) <= 1
        # Each row weighs 1 / row_normalizer in its step, so an epoch's weights add up to its number of steps.
        assert sum(size / step.row_normalizer for size, step in zip(sizes, piece, strict=True)) == pytest.approx(steps)
        assert sum(step.token_normalizer for step in piece) == sum(responses)
    for step in plan:
        assert len(step.shards) == ranks
        assert len({len(shard) for shard in step.shards}) == 1
        per_rank = [sum(len(batch.rows) for batch in shard) for shard in step.shards]
        assert max(per_rank) - min(per_rank) <= 1
        assert step.token_normalizer == sum(responses[row] for row in step.rows)
        for batch in (batch for shard in step.shards for batch in shard):
            assert (batch.padding > 0) == (not batch.rows)
            assert len(batch.rows) <= micro
            if max_tokens is not None and len(batch.rows) > 1:
                assert max(lengths[row] for row in batch.rows) * len(batch.rows) <= max_tokens


@pytest.mark.parametrize("count", [12, 37, 100])
def test_sizes_of_the_steps_in_numbers(count: int) -> None:
    plan = plan_updates([5] * count, [2] * count, mini_batch=16, micro_batch=4, seed=1)
    expected = {12: [12], 37: [13, 12, 12], 100: [15, 15, 14, 14, 14, 14, 14]}[count]
    assert [len(step.rows) for step in plan] == expected
    assert {step.row_normalizer for step in plan} == {count / len(expected)}


def test_epochs_and_seeds_shuffle_differently() -> None:
    lengths = list(range(2, 42))
    plan = plan_updates(lengths, lengths, mini_batch=10, micro_batch=10, epochs=2, seed=1)
    other = plan_updates(lengths, lengths, mini_batch=10, micro_batch=10, epochs=2, seed=2)
    assert sorted(plan[0].rows) != sorted(plan[4].rows)
    assert sorted(plan[0].rows) != sorted(other[0].rows)


def test_no_rows_no_steps_and_bad_sizes() -> None:
    assert plan_updates([], [], mini_batch=0, micro_batch=1) == []
    with pytest.raises(ValueError, match="at least 1"):
        plan_updates([3], [1], mini_batch=0, micro_batch=1)


@settings(max_examples=60, deadline=None)
@given(equal=st.lists(st.integers(0, 12), min_size=1, max_size=90), mini=st.integers(1, 40), seed=st.integers(0, 5))
def test_equal_rows_stay_together_and_every_row_is_planned_once(equal: list[int], mini: int, seed: int) -> None:
    lengths = [5] * len(equal)
    plan = plan_updates(lengths, lengths, mini_batch=mini, micro_batch=None, seed=seed, together=equal)
    assert sorted(row for step in plan for row in step.rows) == list(range(len(equal)))
    sizes = [len(step.rows) for step in plan]
    assert max(sizes) - min(sizes) <= 1
    for number in set(equal):
        touched = [index for index, step in enumerate(plan) if any(equal[row] == number for row in step.rows)]
        assert touched == list(range(touched[0], touched[-1] + 1)), "a run of equal rows is cut only where a step ends"


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=30),
    mini=st.integers(1, 40),
    micro=st.integers(1, 5),
    ranks=st.integers(1, 3),
    max_tokens=st.none() | st.integers(5, 90),
    seed=st.integers(0, 5),
)
def test_sequences_are_never_divided_and_steps_hold_about_as_many_rows(
    sizes: list[int], mini: int, micro: int, ranks: int, max_tokens: int | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.permutation([number for number, size in enumerate(sizes) for _ in range(size)]).tolist()
    lengths: list[int] = []
    for place, number in enumerate(numbers):
        lengths.append(5 * (1 + numbers[:place].count(number)))
    longest = {number: 5 * size for number, size in enumerate(sizes)}
    plan = plan_updates(
        lengths, [2] * len(lengths), mini_batch=mini, micro_batch=micro, ranks=ranks, max_tokens=max_tokens, seed=seed,
        sequences=numbers,
    )  # fmt: skip
    assert len(plan) == min(math.ceil(len(numbers) / mini), len(sizes))
    assert sorted(row for step in plan for row in step.rows) == list(range(len(numbers)))
    batches = [batch for step in plan for shard in step.shards for batch in shard]
    of_batch = [{numbers[row] for row in batch.rows} for batch in batches]
    # Each sequence is in one pass, in order, and no two passes share one.
    assert sum(map(len, of_batch)) == len(sizes)
    for batch, inside in zip(batches, of_batch, strict=True):
        assert len(inside) <= micro
        runs = [numbers[row] for row in batch.rows]
        assert sum(one != two for one, two in pairwise(runs)) == max(len(inside) - 1, 0)
        assert all(lengths[one] < lengths[two] for one, two in pairwise(batch.rows) if numbers[one] == numbers[two])
        if max_tokens is not None and len(inside) > 1:
            assert max(longest[number] for number in inside) * len(inside) <= max_tokens
    if len(plan) == math.ceil(len(numbers) / mini) and mini >= 2 * max(sizes):
        assert all(len(step.rows) < mini + max(sizes) for step in plan)
    assert sum(len(step.rows) for step in plan) == pytest.approx(sum(step.row_normalizer for step in plan))


@settings(max_examples=80, deadline=None)
@given(
    equal=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    mini=st.integers(1, 40),
    micro=st.integers(1, 5),
    ranks=st.integers(1, 3),
    max_tokens=st.none() | st.integers(5, 90),
    seed=st.integers(0, 5),
)
def test_equal_rows_of_a_step_are_read_once_and_count_once(
    equal: list[int], mini: int, micro: int, ranks: int, max_tokens: int | None, seed: int
) -> None:
    sizes = np.random.default_rng(seed).integers(3, 40, 10).tolist()
    lengths = [sizes[number] for number in equal]
    arguments = {"mini_batch": mini, "micro_batch": micro, "ranks": ranks, "max_tokens": max_tokens, "seed": seed}
    plan = plan_updates(lengths, [2] * len(equal), **arguments, equal=equal)
    plain = plan_updates(lengths, [2] * len(equal), **arguments)
    for step, other in zip(plan, plain, strict=True):
        # The same rows, and the same divisors.
        assert sorted(step.rows) == sorted(other.rows)
        assert (step.row_normalizer, step.token_normalizer) == (other.row_normalizer, other.token_normalizer)
        read_by: list[list[int]] = []
        for shard in step.shards:
            read_by.append([])
            for batch in shard:
                numbers = [equal[row] for row in batch.rows]
                distinct = list(dict.fromkeys(numbers))
                assert batch.sequence_of == tuple(distinct.index(number) for number in numbers)
                assert len(distinct) <= micro
                assert max_tokens is None or len(distinct) <= 1 or sizes[distinct[0]] * len(distinct) <= max_tokens
                read_by[-1] += distinct
        read = [number for shard in read_by for number in shard]
        assert sorted(read) == sorted({equal[row] for row in step.rows})
        # Ranks share what is read, however often its rows repeat.
        tokens = [sum(sizes[number] for number in shard) for shard in read_by]
        assert max(tokens) - min(tokens) <= max(sizes[number] for number in read)


def test_passes_read_equal_rows_once() -> None:
    """Equal in prompt and response: the same answer to another prompt, or another answer, is another sequence."""
    rows = [TokenRow(prompt, answer, []) for prompt, answer in (([1], [5]), ([2], [5]), ([1], [6]), ([1], [5]))]
    batches = BatchSettings(10, 10, None, 10, None)
    for plan in (batches.plan_training(rows, 1, seed=0), batches.plan_forward(rows)):
        (batch,) = plan[0].shards[0]
        read = dict(zip(batch.rows, batch.sequence_of, strict=True))
        assert read[0] == read[3]
        assert len({read[0], read[1], read[2]}) == 3
    (batch,) = replace(batches, equal_rows_once=False).plan_training(rows, 1, seed=0)[0].shards[0]
    assert batch.sequence_of == (0, 1, 2, 3)


def test_rows_of_their_own_are_planned_as_without_sequences() -> None:
    lengths = [3, 9, 4, 4, 8, 2, 7]
    arguments = {
        "mini_batch": 3,
        "micro_batch": 2,
        "ranks": 2,
        "epochs": 2,
        "seed": 4,
        "together": [1, 2, 1, 3, 2, 4, 5],
    }
    assert plan_updates(lengths, lengths, **arguments, sequences=list(range(7))) == plan_updates(
        lengths, lengths, **arguments
    )


@settings(max_examples=60, deadline=None)
@given(
    responses=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), max_size=60),
    micro=st.none() | st.integers(1, 20),
    max_tokens=st.integers(5, 120),
)
def test_rows_of_a_prompt_share_a_pass(responses: list[tuple[int, int]], micro: int | None, max_tokens: int) -> None:
    rows = [TokenRow([prompt] * prompt, [0] * length, [0.0] * length) for prompt, length in responses]
    plan = plan_by_prompt(rows, micro, max_tokens)
    assert sorted(row for batch in plan for row in batch.rows) == list(range(len(rows)))
    for batch in plan:
        assert micro is None or len(batch.rows) <= micro
        assert len(batch.rows) == 1 or max(rows[row].length for row in batch.rows) * len(batch.rows) <= max_tokens
    read = [rows[row].prompt_ids for batch in plan for row in batch.rows]
    changes = sum(one != other for one, other in pairwise(read))
    assert changes == max(len({tuple(prompt) for prompt in read}) - 1, 0), "rows of one prompt are side by side"
