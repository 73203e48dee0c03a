"""Our estimators behind verl's interface, called as verl 0.7.0 calls them (see ``support.verl_standin``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gagpo import credit
from openrlhf_gagpo.errors import EstimatorError, StepBatchError
from openrlhf_gagpo.interop.verl import Fields, adapter, handing_over, identity
from support import verl_standin
from support.step_batches import Trajectory, columns_of, trajectory_lists

WIDTH = 5
LIGHT = [name for name in credit.names() if not credit.get(name).needs]
PLAYED: list[Trajectory] = [("g", "t", "ABAz", [0, 0, 1]), ("g", "u", "ABz", [0, 0]), ("h", "v", "CDz", [0, 1])]


@pytest.fixture(autouse=True)
def no_estimators_in_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verl_standin, "_REGISTERED", {})


def lengths(rows: int) -> list[int]:
    """Trained tokens of each row."""
    return [1 + row % WIDTH for row in range(rows)]


def data_of(trajectories: list[Trajectory]) -> verl_standin.DataProto:
    """The rows as verl has them: two tensors, and an entry per row for everything else. Rewards are on last tokens."""
    columns = columns_of(trajectories)
    rows = len(columns["step"])
    mask, rewards = torch.zeros(rows, WIDTH, dtype=torch.long), torch.zeros(rows, WIDTH)
    for row, length in enumerate(lengths(rows)):
        mask[row, :length] = 1
        rewards[row, length - 1] = columns["reward"][row]
    names = {"group": "uid", "traj": "traj_uid", "state": "anchor_obs", "next_state": "next_anchor_obs"}
    entries = {
        names.get(name, name): np.array(column, dtype=object)
        for name, column in columns.items()
        if name in ("group", "traj", "step", "state", "next_state", "terminated", "truncated", "action")
    }
    # Tensors of rewards are float32.
    entries["rewards"] = rewards.sum(dim=1).numpy()
    return verl_standin.DataProto({"token_level_rewards": rewards, "response_mask": mask}, entries)


def rows_of(data: verl_standin.DataProto, order: list[int]) -> verl_standin.DataProto:
    return verl_standin.DataProto(
        {name: tensor[order] for name, tensor in data.batch.items()},
        {name: column[order] for name, column in data.non_tensor_batch.items()},
    )


def computed(data: verl_standin.DataProto, name: str, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns of an estimator that is registered with verl and called by it."""
    verl_standin._REGISTERED.clear()
    verl_standin.register_adv_est(f"step_{name}")(adapter(name, *args, **kwargs))
    out = handing_over(verl_standin.compute_advantage)(data, f"step_{name}", gamma=1.0, lam=1.0, config={})
    return out.batch["advantages"].numpy(), out.batch["returns"].numpy()


def by_hand(trajectories: list[Trajectory], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The estimator on the groups that are large enough, its numbers repeated over the tokens."""
    estimator = credit.get(name)
    sizes = [len({t for g, t, *_ in trajectories if g == group}) for group, *_ in trajectories]
    large = [played for played, size in zip(trajectories, sizes, strict=True) if size >= estimator.group_min]
    columns = columns_of(trajectories)
    rows = len(columns["step"])
    chosen = [row for row in range(rows) if columns["traj"][row] in {name for _, name, *_ in large}]
    advantage, returns = np.zeros((rows, WIDTH)), np.zeros((rows, WIDTH))
    if chosen:
        some = {key: [column[row] for row in chosen] for key, column in columns.items()}
        n_tokens = [lengths(rows)[row] for row in chosen]
        # Tensors of rewards are float32.
        some["reward"] = [float(np.float32(reward)) for reward in some["reward"]]
        result = estimator(credit.StepBatch.from_columns(**some, n_tokens=n_tokens))
        for position, row in enumerate(chosen):
            advantage[row] = result.advantage[position]
            returns[row] = (result.advantage if result.return_ is None else result.return_)[position]
    mask = np.arange(WIDTH) < np.array(lengths(rows))[:, None]
    return advantage * mask, returns * mask


@pytest.mark.parametrize("name", LIGHT)
@settings(max_examples=20)
@given(trajectories=trajectory_lists(), seed=st.integers(0, 9))
def test_numbers_are_the_estimators_in_any_row_order(name: str, trajectories: list[Trajectory], seed: int) -> None:
    advantage, returns = by_hand(trajectories, name)
    order = np.random.default_rng(seed).permutation(len(advantage)).tolist()
    for rows in (list(range(len(advantage))), order):
        found = computed(rows_of(data_of(trajectories), rows), name)
        np.testing.assert_allclose(found[0], advantage[rows], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], returns[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LIGHT)
def test_copies_of_rows_change_nothing_and_get_the_numbers_of_the_original(name: str) -> None:
    data = data_of(PLAYED)
    rows = len(data.non_tensor_batch["step"])
    padded = rows_of(data, [*range(rows), 3, 0, 3])
    for single, with_copies in zip(computed(data, name), computed(padded, name), strict=True):
        np.testing.assert_array_equal(with_copies[:rows], single)
        np.testing.assert_array_equal(with_copies[rows:], single[[3, 0, 3]])


def test_what_the_batch_does_not_say_follows_from_its_rows() -> None:
    data = data_of(PLAYED)
    whole = computed(data, "gagpo")
    for name in ("next_anchor_obs", "terminated", "truncated", "action", "rewards"):
        data.non_tensor_batch.pop(name, None)
    for known, followed in zip(whole, computed(data, "gagpo"), strict=True):
        np.testing.assert_array_equal(followed, known)


def test_fields_rewards_and_invalid_responses() -> None:
    data = data_of(PLAYED)
    entries = data.non_tensor_batch
    entries["where"] = np.array([number for number, _ in enumerate(entries["step"])], dtype=np.int64)
    entries["is_action_valid"] = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    entries["rewards"] = np.zeros(7)
    del entries["next_anchor_obs"]
    options = credit.get("grpo").options_cls(invalid_penalty=0.5, invalid_penalty_mode="reward")
    _, returns = computed(data, "grpo", options, fields=Fields(state="where"))
    np.testing.assert_array_equal(returns.max(axis=1) + returns.min(axis=1), [-0.5, -0.5, -0.5, 0, 0, 0, 0])


def test_type_of_the_tensors_is_kept() -> None:
    data = data_of(PLAYED)
    data.batch["token_level_rewards"] = data.batch["token_level_rewards"].to(torch.bfloat16)
    out = handing_over(verl_standin.compute_advantage)
    verl_standin.register_adv_est("step_rloo")(adapter("rloo"))
    assert out(data=data, adv_estimator="step_rloo").batch["advantages"].dtype == torch.bfloat16


def test_advantages_of_tokens_and_missing_returns() -> None:
    def count(batch: credit.StepBatch, options: credit.EstimatorOptions) -> credit.CreditResult:
        tokens = (
            np.arange(len(batch.tokens.label))
            - batch.tokens.expand(batch.tokens.start)
            + 10.0 * batch.step.repeat(batch.n_tokens)
        )
        return credit.CreditResult.of(batch, options, advantage=batch.reward, token_advantage=tokens)

    credit.register("count", credit.EstimatorOptions)(count)
    data = rows_of(data_of(PLAYED), [4, 2, 1, 0, 3, 2])
    advantage, returns = computed(data, "count")
    expected = [[10, 11, 12, 13, 14], [20, 21, 22, 0, 0], [10, 11, 0, 0, 0], [0] * 5, [0, 1, 2, 3, 0]]
    np.testing.assert_array_equal(advantage, [*expected, expected[1]])
    np.testing.assert_array_equal(returns, advantage)


def test_groups_that_are_too_small_get_nothing() -> None:
    advantage, _ = computed(data_of(PLAYED), "rloo")
    assert advantage[:5].any()
    assert not advantage[5:].any()
    advantage, returns = computed(data_of(PLAYED[2:]), "rloo")
    assert not advantage.any()
    assert not returns.any()


def test_identity_may_be_handed_over_in_three_ways() -> None:
    data, function = data_of(PLAYED), adapter("gigpo")
    tensors = (data.batch["token_level_rewards"], data.batch["response_mask"])
    direct = function(*tensors, non_tensor_batch=data.non_tensor_batch)[0]
    with identity(data.non_tensor_batch):
        assert torch.equal(function(*tensors)[0], direct)
    np.testing.assert_array_equal(computed(data, "gigpo")[0], direct.numpy())
    with pytest.raises(EstimatorError, match=r"identity was not handed over; wrap verl's compute_advantage"):
        function(*tensors)


def test_what_is_refused() -> None:
    with pytest.raises(EstimatorError, match="unknown advantage estimator"):
        adapter("nonsense")
    with pytest.raises(EstimatorError, match="takes GrpoOptions, not RlooOptions"):
        adapter("grpo", credit.get("rloo").options_cls())
    credit.register("critic", credit.EstimatorOptions, needs={"value"})(
        lambda batch, options: credit.CreditResult.of(batch, options, advantage=batch.required("value"))
    )
    data = data_of(PLAYED)
    with pytest.raises(EstimatorError, match="estimator critic: the step batch has no column value"):
        computed(data, "critic")
    data.non_tensor_batch["value"] = np.arange(7.0)
    assert computed(data, "critic")[0].max(axis=1).tolist() == [0, 1, 2, 3, 4, 0, 0]


@pytest.mark.parametrize(
    ("name", "column", "sentence"),
    [
        ("traj_uid", None, "has no 'traj_uid', which holds the traj of every row; add it, or name another entry"),
        ("step", np.zeros(7, dtype=int), "rows 0 and 1 are both step 0 of trajectory 't' but differ; number the steps"),
        ("step", np.arange(3), "'step' has 3 entries for 7 rows"),
        ("anchor_obs", np.array(["A", 1, 2, 3, 4, 5, 6], dtype=object), "all text or all whole numbers, not int, str"),
        ("terminated", np.zeros(7), "the last step is neither terminated nor truncated"),
    ],
)
def test_batches_that_do_not_say_enough(name: str, column: np.ndarray | None, sentence: str) -> None:
    data = data_of(PLAYED)
    data.non_tensor_batch.pop(name)
    if column is not None:
        data.non_tensor_batch[name] = column
    if name == "terminated":
        data.non_tensor_batch["truncated"] = column
    with pytest.raises(StepBatchError, match=sentence):
        computed(data, "gagpo")


def test_a_score_on_every_row_is_not_taken_for_rewards() -> None:
    data = data_of(PLAYED)
    del data.non_tensor_batch["rewards"]
    first = [row for row, key in enumerate(data.non_tensor_batch["traj_uid"]) if key == "t"]
    data.batch["token_level_rewards"][first] = 0.0
    data.batch["token_level_rewards"][first, 0] = 1.0
    with pytest.raises(StepBatchError, match="'t' has the reward 1, which looks like its score repeated"):
        computed(data, "grpo")
    data.non_tensor_batch["rewards"] = np.ones(len(data.non_tensor_batch["step"]))
    computed(data, "grpo")


def test_a_critic_gets_its_targets() -> None:
    data = data_of(PLAYED)
    data.non_tensor_batch["value"] = np.full(7, 0.5)
    options = credit.get("gae").options_cls(gamma=1.0, lambd=0.0, whiten=False)
    returns = computed(data, "gae", options)[1]
    # One step ahead: the value of the next step, and the reward at the end.
    np.testing.assert_allclose(returns.max(axis=1), [0.5, 0.5, 1, 0.5, 0, 0.5, 1])


def test_what_the_interface_has_no_place_for_is_refused() -> None:
    data = data_of(PLAYED)
    data.non_tensor_batch["ig"] = np.array([0.5, None, 0.1, 0.2, 0.3, 0.4, 0.5], dtype=object)
    with pytest.raises(EstimatorError, match="a2tgpo scales the clip range of every step"):
        computed(data, "a2tgpo")


def test_switches_are_read_and_not_guessed() -> None:
    data = data_of(PLAYED)
    data.non_tensor_batch["inadmissible"] = np.array(["False"] * 4 + ["True"] + ["False"] * 2, dtype=object)
    options = credit.get("grpo").options_cls(inadmissible_penalty=0.5, no_std_norm=True)
    costly = computed(data, "grpo", options)[0]
    del data.non_tensor_batch["inadmissible"]
    assert (costly != computed(data, "grpo", options)[0]).any()
    data.non_tensor_batch["is_action_valid"] = np.array([True] * 6 + [None], dtype=object)
    with pytest.raises(StepBatchError, match="'is_action_valid' of row 6 is None; give true or false"):
        computed(data, "grpo")
