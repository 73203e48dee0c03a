"""Graph-based estimators and Bellman values: worked examples, plain loops, reductions to other estimators, limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gagpo import credit
from openrlhf_gagpo.credit.estimators import graphgpo
from openrlhf_gagpo.credit.graph import bellman_values, distances
from openrlhf_gagpo.errors import EstimatorError
from support import plain_credit_graph as plain
from support.step_batches import Trajectory, batch_of, columns_of, credit_of, shuffled, trajectory_lists

Columns = dict[str, list[Any]]
STEP = {"step_coef": 1.0, "episode_coef": 0.0}
EPISODE = {"step_coef": 0.0, "episode_coef": 1.0}
GRAPH_BASED = ("graphgpo", "g2po", "crbc", "gagpo")
PROPERTIES = settings(deadline=None, max_examples=60)
DISCOUNTS = st.sampled_from([0.0, 0.3, 0.9])


@st.composite
def column_sets(draw: st.DrawFn, invalid: bool = True) -> Columns:
    """Columns with actions, invalid steps, and failures that are terminated as well as truncated."""
    columns = columns_of(draw(trajectory_lists()))
    random = draw(st.randoms(use_true_random=False))
    count = len(columns["step"])
    columns["action"] = [random.choice("xyz") for _ in range(count)]
    columns["invalid"] = [invalid and random.random() < 0.3 for _ in range(count)]
    for row in range(count):
        if columns["truncated"][row] and random.random() < 0.5:
            columns["truncated"][row], columns["terminated"][row] = False, True
    return columns


def advantage(columns: Columns, name: str, **options: Any) -> np.ndarray:
    return credit_of(credit.StepBatch.from_columns(**columns), name, **options).advantage


def own_states(trajectories: list[Trajectory]) -> list[Trajectory]:
    """The same episodes with no state visited twice."""
    key = iter(range(10_000))
    return [
        (group, name, [str(next(key)) for _ in range(len(rewards) + 1)], rewards)
        for group, name, _, rewards in trajectories
    ]


def assert_close(found: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


# Plain loops


@PROPERTIES
@given(column_sets(), st.sampled_from([0.1, 0.5, 1.0]), st.booleans(), st.booleans())
def test_graphgpo_is_its_plain_loop(columns: Columns, omega: float, progress: bool, dead_end: bool) -> None:
    failed_end = "dead_end" if dead_end else "state"
    found = advantage(columns, "graphgpo", omega=omega, progress=progress, failed_end=failed_end, **STEP)
    assert_close(found, plain.graphgpo(columns, omega, progress, dead_end))


@PROPERTIES
@given(column_sets(), st.booleans())
def test_distances_are_those_of_relaxed_edges(columns: Columns, dead_end: bool) -> None:
    batch = credit.StepBatch.from_columns(**columns)
    options = graphgpo.GraphgpoOptions(failed_end="dead_end" if dead_end else "state")
    found = graphgpo.success_distances(batch, options)
    for ours, theirs in zip(found, plain.distances(columns, dead_end), strict=True):
        assert batch.restore(ours).tolist() == theirs


@PROPERTIES
@given(column_sets(), DISCOUNTS)
def test_g2po_is_its_plain_loop(columns: Columns, gamma: float) -> None:
    assert_close(advantage(columns, "g2po", gamma=gamma, **STEP), plain.g2po(columns, gamma))


@PROPERTIES
@given(column_sets(), DISCOUNTS, st.sampled_from(["action", "next_state"]), st.sampled_from(["outcome", "reward"]))
def test_crbc_is_its_plain_loop(columns: Columns, gamma: float, edge: str, value_of: str) -> None:
    found = advantage(columns, "crbc", gamma=gamma, edge=edge, value_of=value_of, **STEP)
    assert_close(found, plain.crbc(columns, gamma, edge, value_of == "reward"))


@PROPERTIES
@given(column_sets(), DISCOUNTS, st.sampled_from([0.0, 0.8, 1.0]), st.sampled_from(["reward", "local"]))
def test_bellman_gagpo_is_its_plain_loop(columns: Columns, gamma: float, lambd: float, mode: str) -> None:
    found = advantage(
        columns, "gagpo", value="bellman", gamma=gamma, lambd=lambd, normalize="none", invalid_penalty_mode=mode
    )
    assert_close(found, plain.gagpo_bellman(columns, gamma, lambd))


@PROPERTIES
@given(column_sets(), st.sampled_from(["graphgpo", "g2po", "crbc"]))
def test_the_episode_term(columns: Columns, name: str) -> None:
    found = advantage(columns, name, statistics="rows", **EPISODE)
    assert_close(found, plain.episode_term(columns))
    assert_close(found, advantage(columns, "gigpo", statistics="rows", step_coef=0.0))


@PROPERTIES
@given(column_sets(), st.randoms(use_true_random=False), st.sampled_from(GRAPH_BASED))
def test_row_order_does_not_matter(columns: Columns, random: Any, name: str) -> None:
    order = np.array(random.sample(range(len(columns["step"])), len(columns["step"])))
    options = {"value": "bellman"} if name == "gagpo" else {}
    first, second = (
        credit_of(credit.StepBatch.from_columns(**given_columns), name, **options)
        for given_columns in (columns, shuffled(columns, order))
    )
    for field in ("advantage", "return_", "value"):
        np.testing.assert_allclose(getattr(first, field)[order], getattr(second, field), rtol=1e-9, atol=1e-9)


# Bellman values


@PROPERTIES
@given(column_sets(), st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.sampled_from(["reward", "local", "none"]))
def test_bellman_residuals_average_to_zero_in_every_state(columns: Columns, gamma: float, mode: str) -> None:
    batch = credit.StepBatch.from_columns(**columns)
    result = credit_of(batch, "gagpo", value="bellman", gamma=gamma, invalid_penalty_mode=mode)
    assert result.td_residual is not None
    assert result.value is not None
    scale = 1 + np.abs(result.value).max()
    assert_close(batch.states.mean(result.td_residual[batch.order]) / scale, 0)


@PROPERTIES
@given(trajectory_lists(), st.sampled_from([0.5, 1.0]))
def test_where_nothing_is_shared_bellman_values_are_returns(trajectories: list[Trajectory], gamma: float) -> None:
    result = credit_of(batch_of(own_states(trajectories)), "gagpo", value="bellman", gamma=gamma)
    assert result.return_ is not None
    np.testing.assert_array_equal(result.value, result.return_)
    assert not result.advantage.any()


def test_bellman_values_combine_halves_of_different_episodes() -> None:
    batch = batch_of([("g", "t", "ABz", [0, 0]), ("g", "u", "CBz", [0, 8]), ("g", "v", "AAz", [0, 0])])
    result = credit_of(batch, "gagpo", value="bellman", gamma=0.5)
    # V(B) = 4, V(C) = 2, V(A) = (2 + V(A) / 2 + 0) / 3
    np.testing.assert_allclose(result.value, [0.8, 4, 2, 4, 0.8, 0.8])
    np.testing.assert_allclose(result.td_residual, [1.2, -4, 0, 4, -0.4, -0.8])


def test_bellman_values_of_a_long_self_loop_without_discount() -> None:
    batch = batch_of([("g", "t", "A" * 400, [0.0] * 398 + [3.0])])
    value = bellman_values(batch, batch.reward, np.zeros(1), 1.0)
    np.testing.assert_allclose(value, 3.0, rtol=1e-9)


def test_an_end_value_is_discounted_once() -> None:
    batch = batch_of([("g", "t", "ABz", [0, 0]), ("g", "u", "ACz", [0, 0])])
    np.testing.assert_allclose(bellman_values(batch, batch.reward, np.array([4.0, 0.0]), 0.5), [0.5, 2, 0.5, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "bootstrap"}, "truncation cannot be bootstrap"),
        ({"singleton": "passthrough"}, "leave singleton"),
    ],
)
def test_bellman_values_refuse_other_rules_for_values(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        credit.get("gagpo").options_cls(value="bellman", **options)


# Success and failure


@PROPERTIES
@given(trajectory_lists(), st.sampled_from(["graphgpo", "crbc"]))
def test_without_success_or_penalty_only_the_episode_term_is_left(trajectories: list[Trajectory], name: str) -> None:
    failed = [(*item[:3], [-abs(reward) for reward in item[3]]) for item in trajectories]
    columns = columns_of(failed) | {"action": ["xyz"[row % 3] for row in range(sum(len(item[3]) for item in failed))]}
    assert not advantage(columns, name, **STEP).any()
    np.testing.assert_array_equal(advantage(columns, name), advantage(columns, "gigpo", step_coef=0.0))


@PROPERTIES
@given(trajectory_lists(), st.sampled_from(["graphgpo", "crbc"]))
def test_lone_visits_give_no_step_term(trajectories: list[Trajectory], name: str) -> None:
    columns = columns_of(own_states(trajectories))
    columns |= {"action": ["x"] * len(columns["step"]), "invalid": [True] * len(columns["step"])}
    assert not advantage(columns, name, **STEP).any()


@PROPERTIES
@given(column_sets(), st.sampled_from(["graphgpo", "crbc"]))
def test_the_success_column_replaces_the_threshold(columns: Columns, name: str) -> None:
    names = columns["traj"]
    score = {one: sum(r for r, other in zip(columns["reward"], names, strict=True) if other == one) for one in names}
    for above in (0.0, 5.0):
        by_column = advantage(columns | {"success": [score[one] > above for one in names]}, name, success_above=99.0)
        np.testing.assert_array_equal(by_column, advantage(columns, name, success_above=above))


def test_a_failed_end_that_others_leave_towards_success_is_near_it_unless_a_dead_end() -> None:
    trajectories = [("g", "t", "AB", [0]), ("g", "u", "ABz", [0, 8]), ("g", "v", "AC", [0])]
    columns = columns_of(trajectories)
    columns["terminated"], columns["truncated"] = [True, False, True, True], [False] * 4
    batch = credit.StepBatch.from_columns(**columns)

    def behind(failed_end: str) -> list[float]:
        return graphgpo.success_distances(batch, graphgpo.GraphgpoOptions(failed_end=failed_end))[1].tolist()

    assert behind("state") == [1, 1, 0, 3]
    assert behind("dead_end") == [3, 1, 0, 3]


def test_actions_are_needed_to_compare_actions() -> None:
    columns = columns_of([("g", "t", "ABz", [0, 8]), ("g", "u", "ACz", [0, 0])])
    del columns["action"]
    batch = credit.StepBatch.from_columns(**columns)
    with pytest.raises(EstimatorError, match=r"no column action, .* set edge to next_state"):
        credit_of(batch, "crbc")
    step = credit_of(batch, "crbc", edge="next_state", **STEP).advantage
    np.testing.assert_allclose(step, [1, 0, -1, 0])


def test_crbc_joins_an_action_s_outcomes_and_floors_the_deviation() -> None:
    columns = columns_of([("g", f"t{number}", f"A{end}z", [0, end != "D"]) for number, end in enumerate("BBCD")])
    columns["action"] = [action for first in "xyxy" for action in (first, "end")]
    # gamma 1: V(A) = 3/4, Q(x) = 1, Q(y) = 1/2, deviation 1/4
    np.testing.assert_allclose(advantage(columns, "crbc", gamma=1.0, **STEP)[::2], [1, -1, 1, -1])
    np.testing.assert_allclose(advantage(columns, "crbc", gamma=1.0, std_floor=0.5, **STEP)[::2], [0.5, -0.5] * 2)
    assert not advantage(columns, "crbc", gamma=1.0, std_floor=0.0, **STEP)[1::2].any()


@PROPERTIES
@given(trajectory_lists(), st.sampled_from([0.5, 0.9]), st.sampled_from(["action", "next_state"]))
def test_crbc_of_rewards_is_that_of_outcomes_up_to_its_unit(
    trajectories: list[Trajectory], gamma: float, edge: str
) -> None:
    paid = [(*item[:3], [0.0] * (len(item[3]) - 1) + [10.0 * (item[3][-1] > 0)]) for item in trajectories]
    columns = columns_of(paid) | {"action": ["xyz"[row % 3] for row in range(sum(len(item[3]) for item in paid))]}
    shared = {"gamma": gamma, "edge": edge, **STEP}
    of_rewards = advantage(columns, "crbc", value_of="reward", std_floor=0.1 / gamma, **shared)
    assert_close(of_rewards, advantage(columns, "crbc", **shared))


# Reductions and limits


@PROPERTIES
@given(st.lists(st.lists(st.sampled_from("ABC"), min_size=4, max_size=4), min_size=1, max_size=5), st.integers(1, 4))
def test_graphgpo_is_gigpo_where_all_succeed_and_layers_count_the_steps_left(keys: list[list[str]], last: int) -> None:
    trajectories = []
    for number, letters in enumerate(keys):
        layers = [f"{letter}{left}" for left, letter in zip(range(4, 0, -1), letters, strict=True)]
        layers = layers[number % last :]
        trajectories.append(("g", f"t{number}", [*layers, "end"], [0.0] * (len(layers) - 1) + [10.0]))
    batch = batch_of(trajectories)
    step = credit_of(batch, "graphgpo", omega=0.3, **STEP).advantage
    episode = credit_of(batch, "gigpo", step_coef=0.0).advantage
    assert_close(step, credit_of(batch, "gigpo", gamma=0.3).advantage - episode)


@PROPERTIES
@given(column_sets(invalid=False))
def test_progress_is_a_factor_per_state(columns: Columns) -> None:
    batch = credit.StepBatch.from_columns(**columns)
    plain_worth, worth = (credit_of(batch, "graphgpo", omega=0.5, progress=on).return_ for on in (False, True))
    assert plain_worth is not None
    assert worth is not None
    here, _ = graphgpo.success_distances(batch, graphgpo.GraphgpoOptions())
    assert_close(worth * 0.5 ** (batch.restore(here) - 1), plain_worth)


@PROPERTIES
@given(column_sets())
def test_a_copy_of_an_episode_changes_no_distance(columns: Columns) -> None:
    copied = [row for row, name in enumerate(columns["traj"]) if name == columns["traj"][0]]
    more = {name: [*column, *(column[row] for row in copied)] for name, column in columns.items()}
    more["traj"][len(columns["traj"]) :] = ["copy"] * len(copied)

    def behind(given_columns: Columns) -> np.ndarray:
        batch = credit.StepBatch.from_columns(**given_columns)
        return batch.restore(graphgpo.success_distances(batch, graphgpo.GraphgpoOptions())[1])

    np.testing.assert_array_equal(behind(more)[: len(columns["traj"])], behind(columns))


@pytest.mark.parametrize(
    ("distance", "progress", "expected"),
    [
        (0, False, [1.15, -0.65, -0.50]),
        (3, False, [0.66, 0.49, -1.15]),
        (5, False, [0.58, 0.58, -1.15]),
        (5, True, [1.15, -0.65, -0.50]),
    ],
)
def test_far_from_success_a_penalty_outweighs_all_else_unless_progress_is_scored(
    distance: int, progress: bool, expected: list[float]
) -> None:
    path = [f"d{left}" for left in range(distance, 0, -1)]
    good = ("g", "t", ["A", "A", *path, "end"], [0.0] * (distance + 1) + [10.0])
    bad = ("g", "u", ["A", "lost", "A"], [0.0, 0.0])  # is cut when it comes back to A
    batch = batch_of([good, bad], invalid=[True] + [False] * (distance + 3))
    found = credit_of(batch, "graphgpo", progress=progress, **STEP).advantage
    np.testing.assert_allclose([found[1], found[distance + 2], found[0]], expected, atol=0.005)


@PROPERTIES
@given(trajectory_lists())
def test_g2po_s_gain_without_discount_is_gagpo_s_residual(trajectories: list[Trajectory]) -> None:
    paid = [(*item[:3], [0.0] * (len(item[3]) - 1) + [item[3][-1]]) for item in trajectories]
    batch = batch_of(paid)
    gain = credit_of(batch, "g2po", gamma=1.0).td_residual
    assert_close(gain, credit_of(batch, "gagpo", gamma=1.0, lambd=0.0).td_residual)


def test_chains_of_lone_states_near_a_success_gain_most() -> None:
    batch = batch_of([("g", "t", "ABCz", [0, 0, 10])])
    result = credit_of(batch, "g2po", gamma=0.5)
    np.testing.assert_allclose(result.td_residual, [1.25, 2.5, 5])
    only_one = credit_of(batch_of([("g", "t", "Az", [10])]), "g2po", **STEP)
    assert only_one.advantage.tolist() == [0]


def test_the_released_code_of_g2po_knows_one_reward() -> None:
    batch = batch_of([("g", "t", "Az", [10]), ("g", "u", "Bz", [6])])
    gain = [credit_of(batch, "g2po", gamma=1.0, end_value=end).td_residual for end in ("score", "exact_goal")]
    np.testing.assert_allclose(gain, [[0, 0], [0, -6]])


def test_distances_pass_loops_and_side_branches() -> None:
    edges = [(0, 0), (0, 1), (1, 2), (2, 0), (2, 5), (1, 5), (3, 4)]
    source, target = map(np.array, zip(*edges, strict=True))
    assert distances(source, target, 5, 7).tolist() == [2, 1, 1, np.inf, np.inf, 0, np.inf]
