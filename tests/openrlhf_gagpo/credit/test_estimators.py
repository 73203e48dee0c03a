"""Advantage estimators: worked examples, properties, exact zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gagpo import credit
from support.step_batches import Trajectory, batch_of, columns_of, credit_of, shuffled, trajectory_lists


def advantages(batch: credit.StepBatch, name: str, **options: Any) -> np.ndarray:
    return credit_of(batch, name, **options).advantage


# The others have tests of their own, with the columns that they need.
NAMES = [name for name in credit.names() if not credit.get(name).needs]
WORKED = [("g", "t1", "ABCz", [0, 0, 8]), ("g", "t2", "ABDz", [0, 0, 0]), ("g", "t3", "ACz", [0, 8])]
ROWS = {"statistics": "rows"}
SD = np.sqrt(14.5 / 7)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("gagpo", {"gamma": 0.5, "lambd": 0.5}, np.array([-0.5, 2, 0, -1.5, -2, 0, 2, 0]) / SD),
        ("gagpo", {"gamma": 0.5, "lambd": 0.5, "normalize": "none"}, [-0.5, 2, 0, -1.5, -2, 0, 2, 0]),
        ("gagpo", {"gamma": 0.5, "lambd": 0.0, "normalize": "none"}, [-1, 2, 0, -1, -2, 0, 2, 0]),
        ("gagpo", {"gamma": 0.5, "lambd": 1.0, "normalize": "none"}, [0, 2, 0, -2, -2, 0, 2, 0]),
        ("gagpo", {"gamma": 0.5, "monte_carlo": True, "normalize": "none"}, [0, 2, 0, -2, -2, 0, 2, 0]),
        ("gigpo", {"gamma": 0.5, "gigpo_mode": "mean_norm", **ROWS}, [3, 5, 3, -7, -7, -5, 5, 3]),
        ("grpo", ROWS, np.array([3, 3, 3, -5, -5, -5, 3, 3]) / np.sqrt(120 / 7)),
        ("grpo", {"no_std_norm": True, **ROWS}, [3, 3, 3, -5, -5, -5, 3, 3]),
        ("grpo", {"no_std_norm": True}, np.array([8, 8, 8, -16, -16, -16, 8, 8]) / 3),
        ("rloo", ROWS, np.array([3, 3, 3, -5, -5, -5, 3, 3]) * 8 / 7),
        ("rloo", {}, [4, 4, 4, -8, -8, -8, 4, 4]),
        ("reinforce_baseline", ROWS, np.array([3, 3, 3, -5, -5, -5, 3, 3]) / np.sqrt(120 / 7)),
    ],
)
def test_worked_example(name: str, options: dict[str, Any], expected: Any) -> None:
    np.testing.assert_allclose(advantages(batch_of(WORKED), name, **options), expected, rtol=1e-5, atol=1e-6)


def test_worked_example_intermediates() -> None:
    estimator = credit.get("gagpo")
    result = estimator(batch_of(WORKED), estimator.options_cls(gamma=0.5))
    np.testing.assert_allclose(result.return_, [2, 4, 8, 0, 0, 0, 4, 8])
    np.testing.assert_allclose(result.value, [2, 2, 8, 2, 2, 0, 2, 8])
    np.testing.assert_allclose(result.td_residual, [-1, 2, 0, -1, -2, 0, 2, 0])
    assert result.state_group_size.tolist() == [3, 2, 2, 3, 2, 1, 3, 2]
    assert result.keep.all()
    assert result.diagnostics["singleton_share"] == 1 / 8
    assert result.diagnostics["state_group_size_share/3_4"] == 3 / 8


def test_a_winner_s_own_state_is_pushed_down_below_lambda_one() -> None:
    batch = batch_of([("g", "w", "AXCz", [0, 0, 8]), ("g", "l", "AYCz", [0, 0, 0])])
    raw = advantages(batch, "gagpo", gamma=1.0, lambd=0.8, normalize="none")
    np.testing.assert_allclose(raw, [3.36, -0.8, 4, -3.36, 0.8, -4])
    through = advantages(batch, "gagpo", gamma=1.0, lambd=0.8, normalize="none", singleton="passthrough")
    assert through[1] > 0 > through[4]


def test_bootstrap_gives_a_truncated_episode_the_value_of_its_final_state() -> None:
    batch = batch_of([("g", "t", "AB", [0]), ("g", "w", "Bz", [8]), ("h", "u", "AB", [0])])
    raw = advantages(batch, "gagpo", gamma=0.5, normalize="none", truncation="bootstrap")
    np.testing.assert_allclose(raw, [4, 0, 0])


def test_a_local_penalty_reaches_earlier_steps_of_gagpo_unless_monte_carlo() -> None:
    batch = batch_of([("g", "t", "ABz", [0, 1]), ("g", "u", "CDy", [0, 1])], invalid=[0, 1, 0, 0])
    estimator = credit.get("gagpo")

    def result(**options: Any) -> credit.CreditResult:
        return estimator(batch, estimator.options_cls(gamma=1.0, normalize="none", invalid_penalty=0.1, **options))

    local = result(lambd=1.0, invalid_penalty_mode="local")
    np.testing.assert_allclose(local.td_residual, [-0.1, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(local.advantage, [-0.1, 0, 0, 0], atol=1e-12)
    assert not result(monte_carlo=True, invalid_penalty_mode="local").advantage.any()
    for mode in ("reward", "none"):
        assert not result(lambd=1.0, invalid_penalty_mode=mode).advantage.any()
        assert not result(monte_carlo=True, invalid_penalty_mode=mode).advantage.any()


@settings(deadline=None, max_examples=60)
@given(trajectory_lists(), st.randoms(use_true_random=False), st.sampled_from(NAMES), st.booleans())
def test_row_order_does_not_matter(trajectories: list[Trajectory], random: Any, name: str, drop: bool) -> None:
    columns = columns_of(trajectories)
    count = len(columns["step"])
    columns["invalid"] = [random.random() < 0.5 for _ in range(count)]
    columns["inadmissible"] = [random.random() < 0.5 for _ in range(count)]
    columns["n_tokens"] = [random.randint(0, 9) for _ in range(count)]
    order = np.array(random.sample(range(count), count))
    options = {"inadmissible_penalty": 0.3, "drop_reward_free_groups": drop}
    first = credit_of(credit.StepBatch.from_columns(**columns), name, **options)
    second = credit_of(credit.StepBatch.from_columns(**shuffled(columns, order)), name, **options)
    for field in ("advantage", "return_", "value", "td_residual", "state_group_size", "keep"):
        one, other = getattr(first, field), getattr(second, field)
        if one is None:
            assert field == "td_residual"
            assert other is None
            assert name != "gagpo"
            continue
        assert one.shape == (count,)
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one[order], other, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), st.randoms(use_true_random=False))
def test_model_columns_and_credit_per_token_keep_to_their_rows(trajectories: list[Trajectory], random: Any) -> None:
    columns = columns_of(trajectories)
    count = len(columns["step"])
    columns["n_tokens"] = [random.randint(0, 4) for _ in range(count)]
    columns["log_prob"] = [-random.random() for _ in range(sum(columns["n_tokens"]))]
    columns["value"] = [random.random() for _ in range(count)]
    columns["ig"] = [random.choice([float("nan"), 0.5, -0.25]) for _ in range(count)]
    order = np.array(random.sample(range(count), count))

    def credit_per_token(given: dict[str, Any]) -> credit.CreditResult:
        batch = credit.StepBatch.from_columns(**given)
        gain = np.nan_to_num(batch.required("ig"))
        surprise = batch.required("log_prob") + batch.tokens.expand(gain)
        return credit.CreditResult.of(
            batch,
            credit.EstimatorOptions(),
            advantage=batch.required("value"),
            clip_scale=1 + gain,
            token_advantage=batch.tokens.backward_sum(surprise, 0.5),
            value_target=batch.tokens.sum(surprise),
        )

    first, second = credit_per_token(columns), credit_per_token(shuffled(columns, order))
    np.testing.assert_array_equal(first.advantage, columns["value"])
    for field in ("advantage", "clip_scale", "value_target"):
        np.testing.assert_allclose(getattr(first, field)[order], getattr(second, field))
    per_token = {"n_tokens": columns["n_tokens"], "log_prob": first.token_advantage}
    np.testing.assert_allclose(shuffled(per_token, order)["log_prob"], second.token_advantage)


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), st.floats(0, 1), st.sampled_from(["paper", "passthrough"]))
def test_lambda_one_is_monte_carlo_and_lambda_zero_the_residual(
    trajectories: list[Trajectory], gamma: float, singleton: str
) -> None:
    batch = batch_of(trajectories)
    estimator = credit.get("gagpo")

    def result(**options: Any) -> credit.CreditResult:
        return estimator(batch, estimator.options_cls(gamma=gamma, normalize="none", singleton=singleton, **options))

    one, monte_carlo, zero = result(lambd=1.0), result(monte_carlo=True), result(lambd=0.0)
    np.testing.assert_allclose(one.advantage, monte_carlo.advantage, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(zero.advantage, zero.td_residual)


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), st.randoms(use_true_random=False), st.floats(0, 1), st.sampled_from(["reward", "local"]))
def test_what_lambda_one_collects_of_later_penalties(
    trajectories: list[Trajectory], random: Any, gamma: float, mode: str
) -> None:
    count = sum(len(rewards) for *_, rewards in trajectories)
    batch = batch_of(
        trajectories,
        invalid=[random.randint(0, 1) for _ in range(count)],
        inadmissible=[random.randint(0, 1) for _ in range(count)],
    )

    def result(**options: Any) -> np.ndarray:
        fixed = {"gamma": gamma, "normalize": "none", "invalid_penalty_mode": mode}
        prices = {"invalid_penalty": 0.5, "inadmissible_penalty": 0.75}
        return advantages(batch, "gagpo", **fixed, **prices, **options)

    cost = np.where(batch.inadmissible, 0.75, 0.5 * batch.invalid)
    later = batch.restore(batch.trajectories.backward_sum(cost, gamma) - cost)
    expected = -later if mode == "local" else np.zeros(count)
    np.testing.assert_allclose(result(lambd=1.0) - result(monte_carlo=True), expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), st.floats(0, 1), st.floats(0, 1))
def test_states_visited_once_give_no_residual_and_no_advantage(
    trajectories: list[Trajectory], gamma: float, lambd: float
) -> None:
    states = iter(range(10_000))
    unique: list[Trajectory] = []
    for group, name, _, rewards in trajectories:
        unique.append((group, name, [str(next(states)) for _ in range(len(rewards) + 1)], rewards))
    estimator = credit.get("gagpo")
    result = estimator(batch_of(unique), estimator.options_cls(gamma=gamma, lambd=lambd))
    assert not result.td_residual.any()
    assert not result.advantage.any()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=12),
    st.sampled_from([0.0, 0.1, 1 / 3, 10.0, 1e6 / 3]),
    st.sampled_from(NAMES),
    st.sampled_from(["rows", "trajectories"]),
)
def test_equal_outcomes_give_exactly_zero(lengths: list[int], reward: float, name: str, statistics: str) -> None:
    trajectories = [("g", f"t{n}", "A" * (k + 1), [0.0] * (k - 1) + [reward]) for n, k in enumerate(lengths)]
    options: dict[str, Any] = {"statistics": statistics}
    if "gamma" in credit.get(name).options_cls.__dataclass_fields__:
        options["gamma"] = 1.0
    if name == "graphgpo":  # only the last step of an episode leads to success
        options["step_coef"] = 0.0
    batch = batch_of(trajectories)
    if name == "gagpo":  # the residuals of one shared state differ; the Monte Carlo form does not
        options["monte_carlo"] = True
    assert not advantages(batch, name, **options).any()


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), st.sampled_from([name for name in NAMES if not name.startswith("reinforce")]))
def test_groups_do_not_see_each_other(trajectories: list[Trajectory], name: str) -> None:
    groups = np.array(columns_of(trajectories)["group"])
    found = credit.get(name)(batch_of(trajectories)).advantage
    for group in {item[0] for item in trajectories}:
        alone = credit.get(name)(batch_of([item for item in trajectories if item[0] == group])).advantage
        np.testing.assert_allclose(found[groups == group], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_groups_without_reward_are_dropped_only_when_asked(name: str) -> None:
    batch = batch_of([*WORKED, ("h", "u1", "ABz", [0, 0]), ("h", "u2", "Az", [0])], invalid=[0] * 8 + [1, 0, 0])
    estimator = credit.get(name)
    kept = estimator(batch)
    assert kept.keep.all()
    assert kept.diagnostics["reward_free_group_share"] == 1 / 2
    dropped = estimator(batch, estimator.options_cls(drop_reward_free_groups=True))
    assert dropped.keep.tolist() == [True] * 8 + [False] * 3
    assert not dropped.advantage[8:].any()
    assert dropped.diagnostics["rows_dropped"] == 3
    without = estimator(batch_of(WORKED), estimator.options_cls(drop_reward_free_groups=True))
    np.testing.assert_allclose(dropped.advantage[:8], without.advantage)


def test_only_groups_with_nothing_but_zeros_are_degenerate() -> None:
    batch = batch_of([*WORKED, ("h", "u1", "ABz", [0, 0]), ("h", "u2", "Az", [0])])
    whitened = credit.get("reinforce_baseline")(batch)
    shared = whitened.advantage[8:]
    assert shared[0] != 0
    assert (shared == shared[0]).all()
    assert whitened.diagnostics["degenerate_group_share"] == 0
    assert credit.get("grpo")(batch).diagnostics["degenerate_group_share"] == 1 / 2


def test_a_trajectory_enters_the_statistics_with_the_penalty_of_its_first_step() -> None:
    batch = batch_of([("g", "t", "ABz", [0, 1]), ("g", "u", "ABz", [0, 0])], invalid=[1, 0, 0, 0])
    np.testing.assert_allclose(advantages(batch, "grpo", no_std_norm=True), [0.45, 0.55, -0.45, -0.45])


def test_rloo_enlarges_the_penalty_of_a_later_step() -> None:
    batch = batch_of([("g", "t", "ABz", [0, 1]), ("g", "u", "ABz", [0, 0])], invalid=[0, 1, 0, 0])
    np.testing.assert_allclose(advantages(batch, "rloo"), [1, 0.8, -1, -1])


@pytest.mark.parametrize("normalize", ["batch", "group", "none"])
def test_a_batch_without_any_reward_may_be_dropped_whole(normalize: str) -> None:
    batch = batch_of([("h", "u1", "ABz", [0, 0]), ("h", "u2", "Az", [0])])
    estimator = credit.get("gagpo")
    result = estimator(batch, estimator.options_cls(drop_reward_free_groups=True, normalize=normalize))
    assert not result.keep.any()
    assert all(np.isfinite(value) for value in result.diagnostics.values())


def test_dropped_rows_leave_the_batch_statistics() -> None:
    free = [("h", "u1", "ABz", [0, 0]), ("h", "u2", "ACz", [0, 0])]
    options = {"normalize": "batch", "drop_reward_free_groups": True}
    with_free = advantages(batch_of([*WORKED, *free]), "gagpo", **options)
    np.testing.assert_allclose(with_free[:8], advantages(batch_of(WORKED), "gagpo", **options))


@pytest.mark.parametrize("name", NAMES)
def test_one_trajectory_alone_in_its_group(name: str) -> None:
    has_steps = "step_coef" in credit.get(name).options_cls.__dataclass_fields__
    options = {"step_coef": 0.0} if has_steps else {}
    found = advantages(batch_of([("g", "t", "ABz", [0, 8])]), name, statistics="trajectories", **options)
    expected = 8.0 if has_steps else {"grpo": 8.0, "rloo": 8.0}.get(name, 0.0)
    assert found.tolist() == [expected, expected]


def test_a_penalised_row_is_not_blown_up_where_trajectories_do_not_differ() -> None:
    batch = batch_of([("g", "t", "ABz", [0, 0]), ("g", "u", "ABz", [0, 0])], invalid=[0, 1, 0, 0])
    np.testing.assert_allclose(advantages(batch, "grpo"), [0, -0.1, 0, 0])
