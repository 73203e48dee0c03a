"""Names, presets and needs of estimators, and the checks around a call."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo import credit
from openrlhf_gagpo.credit import registry
from openrlhf_gagpo.errors import EstimatorError
from openrlhf_gagpo.losses import gspo, ppo
from openrlhf_gagpo.options import declare
from support.step_batches import batch_of

TWO = [("g", "t", "ABz", [0, 1]), ("g", "u", "Az", [0])]


def outcome(batch: credit.StepBatch, options: credit.EstimatorOptions) -> credit.CreditResult:
    return credit.CreditResult.of(batch, options, advantage=batch.reward)


def test_names_and_presets_of_the_built_in_estimators() -> None:
    ours = ("gagpo", "crbc", "g2po", "gigpo", "graphgpo", "grpo", "hgpo", "reinforce", "reinforce_baseline", "rloo")
    assert set(ours) | {"a2tgpo", "gae", "igpo"} <= set(credit.names())
    presets = {name: dict(credit.get(name).presets) for name in ours}
    assert presets["gagpo"] == presets["grpo"] | {"actor.policy_loss_type": gspo.NAME}
    assert presets["grpo"]["actor.policy_loss_type"] == ppo.NAME
    assert all(presets[name] == presets["grpo"] for name in ours[1:])
    json.dumps({name: dict(credit.get(name).presets) for name in credit.names()})
    assert all(not credit.get(name).needs for name in ours)
    assert [name for name in ours if credit.get(name).group_min != 2] == ["reinforce"]


def test_register_and_call() -> None:
    assert credit.register("outcome", credit.EstimatorOptions, {"seed": 1}, group_min=1)(outcome) is outcome
    entry = credit.get("outcome")
    assert (entry.presets, entry.needs, entry.group_min) == ({"seed": 1}, frozenset(), 1)
    np.testing.assert_array_equal(entry(batch_of(TWO)).advantage, [0, 1, 0])


def test_names_that_are_taken_or_unknown() -> None:
    with pytest.raises(EstimatorError, match="'gagpo' exists already; choose another"):
        credit.register("gagpo", credit.EstimatorOptions)(outcome)
    with pytest.raises(EstimatorError, match=r"unknown advantage estimator 'ppo'; choose one of .*gagpo"):
        credit.get("ppo")


def test_snapshot_and_restore() -> None:
    before = registry.snapshot()
    credit.register("outcome", credit.EstimatorOptions)(outcome)
    assert "outcome" not in before
    with_outcome = registry.snapshot()
    registry.restore(before)
    assert "outcome" not in credit.names()
    registry.restore(with_outcome)
    assert credit.get("outcome").compute is outcome


def test_options_of_another_estimator_are_refused() -> None:
    with pytest.raises(EstimatorError, match="grpo takes GrpoOptions, not RlooOptions"):
        credit.get("grpo")(batch_of(TWO), credit.get("rloo").options_cls())


def test_a_column_that_is_needed_and_absent_is_named() -> None:
    credit.register("critic", credit.EstimatorOptions, needs=["value", "ig"])(outcome)
    estimator = credit.get("critic")
    assert estimator.needs == {"value", "ig"}
    with pytest.raises(EstimatorError, match="estimator critic: the step batch has no column ig;"):
        estimator(batch_of(TWO, value=[0, 0, 0]))
    with pytest.raises(EstimatorError, match="estimator critic: the step batch has no column value;"):
        estimator(batch_of(TWO, ig=[0, 0, 0]))
    estimator(batch_of(TWO, ig=[0, 0, 0], value=[0, 0, 0]))


@pytest.mark.parametrize("needs", [["values"], "value", ["value", "reward"]])
def test_needs_are_columns_that_a_model_computes(needs: Any) -> None:
    with pytest.raises(EstimatorError, match="a model can compute the columns value, token_value, ig, log_prob"):
        credit.register("critic", credit.EstimatorOptions, needs=needs)


@pytest.mark.parametrize("target", ["value_target", "token_value_target"])
def test_targets_need_a_critic(target: str) -> None:
    def with_target(batch: credit.StepBatch, options: credit.EstimatorOptions) -> credit.CreditResult:
        return credit.CreditResult.of(batch, options, advantage=batch.reward, **{target: batch.reward})

    credit.register("lonely", credit.EstimatorOptions)(with_target)
    with pytest.raises(EstimatorError, match=r"estimator lonely: it returned targets for a critic without one"):
        credit.get("lonely")(batch_of(TWO))
    credit.register("critic", credit.EstimatorOptions, needs={"value"})(with_target)
    result = credit.get("critic")(batch_of(TWO, value=[0, 0, 0]))
    assert getattr(result, target).tolist() == [0, 1, 0]


def test_a_faulty_result_names_the_estimator() -> None:
    def array(batch: credit.StepBatch, options: credit.EstimatorOptions) -> Any:
        return batch.reward

    def short(batch: credit.StepBatch, options: credit.EstimatorOptions) -> credit.CreditResult:
        return credit.CreditResult.of(batch, options, advantage=batch.reward, value=np.zeros(2))

    def mixed_up(batch: credit.StepBatch, options: credit.EstimatorOptions) -> credit.CreditResult:
        return credit.CreditResult.of(batch, options, advantage=batch.groups.expand(batch.reward))

    for compute, message in (
        (array, "it returned a ndarray; return CreditResult.of"),
        (short, "value has shape"),
        (mixed_up, r"an array of shape \(3,\) was given where 1 numbers are needed"),
    ):
        credit.register(compute.__name__, credit.EstimatorOptions)(compute)
        with pytest.raises(EstimatorError, match=f"estimator {compute.__name__}: {message}"):
            credit.get(compute.__name__)(batch_of(TWO))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", credit.names())
def test_overflow_is_refused(name: str) -> None:
    columns = {"ig": [0.0] * 3, "value": [0.0] * 3}
    huge = batch_of([("g", "t", "ABz", [1e308, 1e308]), ("g", "u", "Az", [-1e308])], **columns)
    with pytest.raises(EstimatorError, match=f"estimator {name}: .* not finite; scale the rewards"):
        credit.get(name)(huge)


def test_a_field_name_means_the_same_in_every_estimator() -> None:
    seen: dict[str, Any] = {}
    for name in credit.names():
        for item in dataclasses.fields(credit.get(name).options_cls):
            assert item.metadata["help"]
            assert seen.setdefault(item.name, item.metadata) == item.metadata

    @dataclass(frozen=True)
    class Other(credit.EstimatorOptions):
        step_coef: float = declare(1.0, "something else")

    with pytest.raises(EstimatorError, match=r"step_coef of estimator 'outcome' is described differently than that of"):
        credit.register("outcome", Other)
