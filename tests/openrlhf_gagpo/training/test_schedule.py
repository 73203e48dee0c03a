"""Which tasks and seeds an iteration gets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.training.schedule import iteration_tasks, refill_tasks, training_requests


@given(count=st.integers(1, 30), per_iteration=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_task_exactly_once_per_pass(count: int, per_iteration: int, seed: int) -> None:
    tasks = [f"task{i}" for i in range(count)]
    iterations = 2 + 3 * count // per_iteration
    stream = [task for i in range(iterations) for task in iteration_tasks(tasks, per_iteration, i + 1, seed)]
    assert len(stream) == iterations * per_iteration
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count]) == sorted(tasks)


def test_an_iteration_does_not_depend_on_those_before_it() -> None:
    tasks = [f"task{i}" for i in range(7)]
    inorder = [iteration_tasks(tasks, 4, i, seed=3) for i in range(1, 9)]
    backwards = [iteration_tasks(tasks, 4, i, seed=3) for i in range(8, 0, -1)]
    assert inorder == backwards[::-1]
    assert inorder != [iteration_tasks(tasks, 4, i, seed=4) for i in range(1, 9)]


def test_passes_are_shuffled_anew() -> None:
    tasks = list(map(str, range(20)))
    first, second = (iteration_tasks(tasks, 20, i, seed=0) for i in (1, 2))
    assert first != second
    assert first != tasks


def test_training_requests_form_groups() -> None:
    requests = training_requests(["a", "b", "a"], 4, iteration=2, seed=9)
    assert [r.task for r in requests] == ["a"] * 4 + ["b"] * 4 + ["a"] * 4
    groups = [requests[i : i + 4] for i in (0, 4, 8)]
    assert all(len({(r.group, r.env_seed) for r in group}) == 1 for group in groups)
    # The same task twice in an iteration is two groups.
    assert len({r.group for r in requests}) == len({r.env_seed for r in requests}) == 3
    assert len({r.sampling_seed for r in requests}) == len({r.trajectory for r in requests}) == 12
    later = training_requests(["a", "b", "a"], 4, iteration=3, seed=9)
    assert not {r.group for r in requests} & {r.group for r in later}
    assert not {r.sampling_seed for r in requests} & {r.sampling_seed for r in later}


@given(count=st.integers(1, 30), per_iteration=st.integers(1, 12), iteration=st.integers(1, 9), seed=st.integers(0, 5))
def test_refills_draw_what_the_iteration_has_not(count: int, per_iteration: int, iteration: int, seed: int) -> None:
    tasks = [f"task{i}" for i in range(count)]
    first = set(iteration_tasks(tasks, per_iteration, iteration, seed))
    others = set(tasks) - first or set(tasks)
    draws = [refill_tasks(tasks, per_iteration, iteration, refill, seed) for refill in range(1, 5)]
    assert all(len(draw) == per_iteration for draw in draws)
    stream = [task for draw in draws for task in draw]
    assert set(stream) <= others
    # Each of them once before any comes again.
    for start in range(0, len(stream) - len(others) + 1, len(others)):
        assert set(stream[start : start + len(others)]) == others


def test_a_refill_depends_on_seed_and_iteration_alone() -> None:
    tasks = [f"task{i}" for i in range(50)]

    def drawn(iteration: int = 3, refill: int = 2, seed: int = 1) -> list[str]:
        return refill_tasks(tasks, 8, iteration, refill, seed)

    assert drawn() == drawn()
    assert len({tuple(drawn()), tuple(drawn(iteration=4)), tuple(drawn(refill=1)), tuple(drawn(seed=2))}) == 4


def test_requests_of_later_draws_have_groups_of_their_own() -> None:
    first, second = (training_requests(["a", "b"], 2, 1, 9, first=number) for number in (0, 2))
    assert [r.group for r in second] == ["i1g2", "i1g2", "i1g3", "i1g3"]
    for name in ("trajectory", "env_seed", "sampling_seed"):
        assert not {getattr(r, name) for r in first} & {getattr(r, name) for r in second}
