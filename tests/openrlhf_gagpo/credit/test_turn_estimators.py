"""HGPO, REINFORCE++, A2TGPO and IGPO against plain loops, and the identities that they have to satisfy."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gagpo import credit
from openrlhf_gagpo.credit.gains import floored_scale
from openrlhf_gagpo.errors import EstimatorError
from openrlhf_gagpo.losses import gspo, ppo
from support import plain_credit_turn as plain
from support.step_batches import Trajectory, batch_of, columns_of, credit_of, shuffled, trajectory_lists

NAN = float("nan")
FREE = {"invalid_penalty": 0.0}
SEEDS = st.randoms(use_true_random=False)
TURN = ("a2tgpo", "igpo")


def with_gains(trajectories: list[Trajectory], draw: random.Random) -> dict[str, Any]:
    """Columns in a random order, with tokens, and a gain on most steps."""
    columns = columns_of(trajectories)
    count = len(columns["step"])
    columns["ig"] = [draw.choice([NAN, 0.5, -0.25, 1e-5, draw.randint(-200, 200) / 100]) for _ in range(count)]
    columns["n_tokens"] = [draw.randint(0, 9) for _ in range(count)]
    return shuffled(columns, np.array(draw.sample(range(count), count)))


def close(found: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def result_of(columns: dict[str, Any], name: str, **options: Any) -> credit.CreditResult:
    return credit_of(credit.StepBatch.from_columns(**columns), name, **options)


@settings(deadline=None, max_examples=60)
@given(
    trajectory_lists(letters="ABC"),
    SEEDS,
    st.integers(0, 3),
    st.sampled_from([0.0, 1.0, 2.0]),
    st.booleans(),
    st.booleans(),
)
def test_hgpo(
    trajectories: list[Trajectory], draw: random.Random, history: int, alpha: float, base: bool, divide: bool
) -> None:
    columns = with_gains(trajectories, draw)
    options = {"hgpo_history": history, "hgpo_length_alpha": alpha, "hgpo_base": base}
    mode = "mean_std_norm" if divide else "mean_norm"
    found = result_of(columns, "hgpo", gamma=0.9, gigpo_mode=mode, **options)
    close(found.advantage, plain.hgpo(columns, gamma=0.9, history=history, alpha=alpha, base=base, divide=divide))
    close(found.return_, plain.discounted_returns(columns, 0.9))


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), st.booleans())
def test_hgpo_without_history_is_the_step_term_of_gigpo_over_the_population(
    trajectories: list[Trajectory], divide: bool
) -> None:
    mode = "mean_std_norm" if divide else "mean_norm"
    batch = batch_of(trajectories)
    hgpo = credit_of(batch, "hgpo", hgpo_history=0, gigpo_mode=mode).advantage
    both, episode = (credit_of(batch, "gigpo", gigpo_mode=mode, step_coef=coef).advantage for coef in (1.0, 0.0))
    step = both - episode
    if divide:  # GiGPO divides by the unbiased deviation
        count = batch.restore(batch.states.expand(batch.states.count))
        step = step * np.sqrt(count / np.maximum(count - 1, 1))
    np.testing.assert_allclose(hgpo, step, rtol=3e-4, atol=1e-6)


def test_hgpo_weighs_longer_common_histories_more() -> None:
    trajectories = [("g", "t", "ABz", [0, 1]), ("g", "u", "ABz", [0, 0]), ("g", "v", "CBz", [0, 0])]
    found = credit_of(batch_of(trajectories), "hgpo", gamma=1.0, gigpo_mode="mean_norm").advantage
    # Step 1 of t: 2/3 above the three visits of B, 1/2 above the two visits of B after A; weights 2 and 3.
    np.testing.assert_allclose(found, [0.5, 0.4 * 2 / 3 + 0.6 / 2, -0.5, -0.4 / 3 - 0.3, 0, -1 / 3], rtol=1e-6)


def test_hgpo_learns_nothing_where_states_never_meet() -> None:
    batch = batch_of([("g", "t", "ABz", [0, 1]), ("g", "u", "CDz", [0, 0])])
    assert not credit_of(batch, "hgpo").advantage.any()
    assert credit_of(batch, "hgpo", hgpo_base=True).advantage.all()


@settings(deadline=None, max_examples=60)
@given(trajectory_lists(), SEEDS, st.sampled_from([0.0, 0.9, 1.0]))
def test_reinforce(trajectories: list[Trajectory], draw: random.Random, gamma: float) -> None:
    columns = with_gains(trajectories, draw)
    found = result_of(columns, "reinforce", gamma=gamma)
    close(found.advantage, plain.reinforce(columns, gamma))
    if found.advantage.any():
        assert abs(np.dot(found.advantage, columns["n_tokens"])) < 1e-6


def test_reinforce_trains_on_a_single_episode_and_on_no_token() -> None:
    assert credit.get("reinforce").group_min == 1
    batch = batch_of([("g", "t", "ABz", [0, 8])], n_tokens=[3, 1])
    np.testing.assert_allclose(credit_of(batch, "reinforce", gamma=0.5).advantage, np.array([-1, 3]) / np.sqrt(3))
    empty = batch_of([("g", "t", "ABz", [0, 8])], n_tokens=[0, 0])
    assert not credit_of(empty, "reinforce", gamma=0.5).advantage.any()


def test_reinforce_takes_its_statistics_from_the_rows_that_train() -> None:
    kept: list[Trajectory] = [("g", "t", "ABz", [1, 8]), ("g", "u", "Az", [0])]
    free: list[Trajectory] = [("h", "v", "Az", [0]), ("h", "w", "Az", [0])]
    options = {"drop_reward_free_groups": True}
    found = credit_of(batch_of([*kept, *free]), "reinforce", **options).advantage
    np.testing.assert_allclose(found[:3], credit_of(batch_of(kept), "reinforce", **options).advantage)
    assert not found[3:].any()


@settings(deadline=None, max_examples=80)
@given(trajectory_lists(), SEEDS, st.sampled_from([0.0, 0.9, 1.0]), st.booleans(), st.booleans())
def test_a2tgpo(
    trajectories: list[Trajectory], draw: random.Random, gamma: float, divide: bool, unbiased: bool
) -> None:
    columns = with_gains(trajectories, draw)
    options = {"gamma": gamma, "a2tgpo_alpha": 0.5, "a2tgpo_beta": 0.25, "no_std_norm": not divide}
    found = result_of(columns, "a2tgpo", turn_norm="unbiased" if unbiased else "turn_group", **options)
    advantage, scale = plain.a2tgpo(columns, gamma=gamma, alpha=0.5, beta=0.25, divide=divide, unbiased=unbiased)
    close(found.advantage, advantage)
    assert found.clip_scale is not None
    close(found.clip_scale, scale)


@settings(deadline=None, max_examples=80)
@given(trajectory_lists(), SEEDS, st.sampled_from([0.0, 0.9, 1.0]), st.booleans(), st.booleans(), st.floats(0.25, 2))
def test_igpo(
    trajectories: list[Trajectory], draw: random.Random, gamma: float, joint: bool, divide: bool, weight: float
) -> None:
    columns = with_gains(trajectories, draw)
    weights = {"outcome_weight": weight, "ig_weight": 1.5}
    mode = {"ig_norm": "joint" if joint else "separate", "no_std_norm": not divide}
    found = result_of(columns, "igpo", gamma=gamma, **mode, **weights)
    close(found.advantage, plain.igpo(columns, gamma=gamma, joint=joint, divide=divide, **weights))


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), SEEDS)
def test_a2tgpo_without_gains_is_grpo_over_the_population(trajectories: list[Trajectory], draw: random.Random) -> None:
    columns = with_gains(trajectories, draw)
    batch = credit.StepBatch.from_columns(**columns)
    centred = credit_of(batch, "grpo", no_std_norm=True).advantage
    alone = batch.restore(batch.groups.expand(batch.trajectory_groups.count == 1))
    scores = batch.trajectories.sum(batch.reward)
    groups = batch.trajectory_groups
    variance = groups.mean((scores - groups.expand(groups.mean(scores))) ** 2)
    scale = batch.restore(batch.groups.expand(floored_scale(np.sqrt(variance))))
    found = credit_of(batch, "a2tgpo", a2tgpo_alpha=0.0).advantage
    np.testing.assert_allclose(found, np.where(alone, 0.0, centred / scale), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), SEEDS)
def test_gains_that_are_equal_per_turn_change_nothing(trajectories: list[Trajectory], draw: random.Random) -> None:
    columns = with_gains(trajectories, draw)
    columns["ig"] = [
        gain if np.isnan(gain) else step / 3 for gain, step in zip(columns["ig"], columns["step"], strict=True)
    ]
    found = result_of(columns, "a2tgpo")
    np.testing.assert_array_equal(found.advantage, result_of(columns, "a2tgpo", a2tgpo_alpha=0.0).advantage)
    np.testing.assert_array_equal(found.clip_scale, 1.0)


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), SEEDS, st.integers(0, 3))
def test_a_constant_on_the_gains_of_one_turn_changes_nothing(
    trajectories: list[Trajectory], draw: random.Random, turn: int
) -> None:
    columns = with_gains(trajectories, draw)
    shifted = [gain + (step == turn) for gain, step in zip(columns["ig"], columns["step"], strict=True)]
    before, after = result_of(columns, "a2tgpo"), result_of(columns | {"ig": shifted}, "a2tgpo")
    np.testing.assert_allclose(after.advantage, before.advantage, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(after.clip_scale, before.clip_scale, rtol=1e-6)


def test_only_unbiased_sees_that_a_further_turn_pays() -> None:
    """One decision, to go on or to stop: what a further turn gains has to reach the step that chose it."""
    on = [("g", f"on{n}", "ABz", [0, 0]) for n in range(2)]
    stop = [("g", f"stop{n}", "Az", [0]) for n in range(2)]

    def first_steps(gain: float, **options: Any) -> tuple[float, float]:
        ig = [0.1, gain, 0.1, gain, 0.1, 0.1]
        found = credit_of(batch_of([*on, *stop], ig=ig), "a2tgpo", **options).advantage
        return found[0], found[4]

    assert first_steps(1.0) == first_steps(-1.0) == (0.0, 0.0)
    for gain, sign in ((1.0, 1), (-1.0, -1)):
        went_on, stopped = first_steps(gain, turn_norm="unbiased")
        assert np.sign([went_on, stopped]).tolist() == [sign, -sign]


@settings(deadline=None, max_examples=40)
@given(trajectory_lists(), SEEDS)
def test_gains_of_a_potential_telescope(trajectories: list[Trajectory], draw: random.Random) -> None:
    columns = columns_of([(*names, [0.0] * len(rewards)) for *names, rewards in trajectories])
    batch = credit.StepBatch.from_columns(**columns)
    potential = np.array([draw.randint(-200, 200) / 100 for _ in range(len(batch))])
    end = np.array([draw.randint(-200, 200) / 100 for _ in range(len(batch.trajectories.count))])
    gain = batch.trajectories.following(potential, end) - potential
    rest = {**columns, "ig": batch.restore(batch.trajectories.expand(end) - potential)}
    options = {"turn_norm": "unbiased", "no_std_norm": True, "a2tgpo_alpha": 1.0}
    found = result_of(columns | {"ig": batch.restore(gain)}, "a2tgpo", **options).advantage
    # With gamma 0 only the first term of the sum is left: here already the whole of what the episode still gains.
    close(found, result_of(rest, "a2tgpo", gamma=0.0, **options).advantage)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9), st.sampled_from([0.0, 0.3, 0.99]))
def test_the_clip_factor_grows_with_the_gain_and_stays_inside_its_bounds(gains: list[float], beta: float) -> None:
    trajectories = [("g", f"t{n}", "Az", [0]) for n in range(len(gains))]
    found = credit_of(batch_of(trajectories, ig=gains), "a2tgpo", a2tgpo_beta=beta).clip_scale
    assert found is not None
    assert (np.diff(found[np.argsort(gains)]) >= 0).all()
    assert ((found > 1 - beta) & (found < 1 + beta)).all() or (found == 1).all()


@pytest.mark.parametrize("name", TURN)
def test_a_local_penalty_is_not_blown_up_where_episodes_do_not_differ(name: str) -> None:
    two: list[Trajectory] = [("g", "t", "ABz", [0, 0]), ("g", "u", "ABz", [0, 0])]
    for trajectories in (two, two[:1]):
        count = 2 * len(trajectories)
        batch = batch_of(trajectories, invalid=[0, 1, 0, 0][:count], ig=[0.5, NAN, 0.5, NAN][:count])
        np.testing.assert_allclose(credit_of(batch, name).advantage, [0, -0.1, 0, 0][:count])


@pytest.mark.parametrize("name", TURN)
@pytest.mark.parametrize("statistics", ["trajectories", "rows"])
def test_equal_gains_and_outcomes_give_exactly_zero(name: str, statistics: str) -> None:
    third = 1 / 3
    trajectories = [("g", f"t{n}", "A" * (n + 2), [0.0] * n + [third]) for n in range(5)]
    ig = [third if step < len(rewards) - 1 else NAN for *_, rewards in trajectories for step in range(len(rewards))]
    batch = batch_of(trajectories, ig=ig)
    assert not credit_of(batch, name, statistics=statistics).advantage.any()


@pytest.mark.parametrize("name", TURN)
def test_no_gain_at_all_leaves_the_outcome(name: str) -> None:
    batch = batch_of([("g", "t", "ABz", [0, 1]), ("g", "u", "Az", [0])], ig=[NAN] * 3)
    np.testing.assert_allclose(credit_of(batch, name).advantage, [1, 1, -1], rtol=1e-5)


@pytest.mark.parametrize("name", TURN)
@settings(deadline=None, max_examples=30)
@given(trajectory_lists(), SEEDS)
def test_row_order_and_other_groups_do_not_matter(name: str, trajectories: list[Trajectory], draw: Any) -> None:
    columns = with_gains(trajectories, draw)
    count = len(columns["step"])
    columns["invalid"] = [draw.random() < 0.5 for _ in range(count)]
    found = result_of(columns, name)
    order = np.array(draw.sample(range(count), count))
    again = result_of(shuffled(columns, order), name)
    close(found.advantage[order], again.advantage)
    for group in set(columns["group"]):
        inside = np.flatnonzero(np.array(columns["group"]) == group)
        close(found.advantage[inside], result_of(shuffled(columns, inside), name).advantage)


@pytest.mark.parametrize("name", TURN)
def test_needs_and_presets(name: str) -> None:
    entry = credit.get(name)
    assert entry.needs == {"ig"}
    assert entry.group_min == 2
    with pytest.raises(EstimatorError, match=f"estimator {name}: the step batch has no column ig;"):
        entry(batch_of([("g", "t", "Az", [1])]))
    presets = dict(entry.presets)
    changed = {flag: value for flag, value in presets.items() if credit.get("grpo").presets.get(flag) != value}
    narrow = {"actor.policy_loss_type": gspo.NAME, "actor.eps_clip_low_high": [3e-3, 4e-3], "algo.kl.init_coef": 0.0}
    assert changed == (narrow if name == "a2tgpo" else {"algo.kl.init_coef": 0.001})
    assert credit.get("igpo").presets["actor.policy_loss_type"] == ppo.NAME
