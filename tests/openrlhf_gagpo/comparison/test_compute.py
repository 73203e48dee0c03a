"""Credit of a source, and agreement of two estimators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from openrlhf_gagpo import credit
from openrlhf_gagpo.comparison.agreement import agreement, agreements
from openrlhf_gagpo.comparison.compute import QUANTITIES, Credit, compute, equal_to_recorded
from openrlhf_gagpo.comparison.recorded import read_rollouts, read_run
from openrlhf_gagpo.comparison.steps import Source, Steps
from openrlhf_gagpo.config.families import families
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.errors import EstimatorError, RunFolderError
from openrlhf_gagpo.rollout.grouping import drop_incomplete
from openrlhf_gagpo.rollout.records import write_episodes
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.table import StepTable
from support.report_runs import episode
from support.step_batches import columns_of, credit_of
from support.step_files import EXAMPLE

LIGHT = [name for name in credit.names() if not credit.get(name).needs]
OPTIONS = credit.EstimatorOptions()


def steps_of(trajectories: list) -> Steps:
    columns = columns_of(trajectories)
    return Steps(columns, [{"step": step} for step in columns["step"]])


def result(advantage: list[float], keep: list[bool] | None = None, name: str = "x") -> Credit:
    kept = np.array([True] * len(advantage) if keep is None else keep, dtype=bool)
    return Credit(name, OPTIONS, {"advantage": np.array(advantage, dtype=float)}, kept, {})


@pytest.fixture
def played() -> list[Episode]:
    """Two full groups, one with a faulted episode that leaves it with a single one, and an episode without steps."""
    episodes = [episode(number, success=number % 3 == 0, steps=3 + number % 2) for number in range(10)]
    episodes[8].end_reason = "env_fault"
    episodes[9].group = "g2"
    empty = episode(11, success=False)
    empty.steps, empty.end_reason = [], "prompt_too_long"
    return [*episodes, empty]


@pytest.mark.parametrize("name", LIGHT)
def test_recorded_advantages_come_out_bit_by_bit(name: str, played: list[Episode], tmp_path: Path) -> None:
    """Recorded as training does it: table, credit and records of the episodes that the estimator can use."""
    estimator = credit.get(name)
    options = estimator.options_cls(invalid_penalty=0.3)
    table = StepTable.from_episodes(drop_incomplete(played, estimator.group_min)[0])
    recorded = table.recorded(estimator(table.batch(), options))
    path = tmp_path / "iter_00001.jsonl.gz"
    write_episodes(path, played, recorded)
    source = read_rollouts(path)
    found = compute(source, name, options)
    assert equal_to_recorded(source, found) == (len(recorded), len(recorded))
    assert len(recorded) == found.keep.sum() > 0
    for row, identity in enumerate(source.identity):
        key = (identity["group"], identity["traj"], identity["step"])
        assert found.keep[row] == (key in recorded)
        for quantity in QUANTITIES:
            known = recorded.get(key, {}).get({"value_proxy": "value"}.get(quantity, quantity))
            assert known is None or found.values[quantity][row] == known


def test_a_run_with_a_critic_recorded_the_values_it_needs(played: list[Episode], tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class TdOptions(credit.EstimatorOptions):
        pass

    def td(batch: credit.StepBatch, options: credit.EstimatorOptions) -> credit.CreditResult:
        value = batch.required("value")
        advantage = batch.reward + batch.trajectories.following(value) - value
        return credit.CreditResult.of(batch, options, advantage=advantage, value=value, value_target=advantage)

    credit.register("td", TdOptions, needs={"value"}, group_min=1)(td)
    config = resolve(["--algo.advantage.estimator", "td", "--env.name", "vault"])
    run = RunFolder.create(tmp_path / "run", config.to_dict(), "", command=[])
    table = StepTable.from_episodes(drop_incomplete(played, 1)[0])
    values = np.random.default_rng(0).normal(size=len(table))
    recorded = table.recorded(credit.get("td")(table.batch({"value": values})))
    write_episodes(run.rollout_path(1), played, recorded)
    source = read_run(run.path, None)
    assert source.own is not None
    assert source.own.estimator == "td"
    assert equal_to_recorded(source, compute(source, "td", source.own.options)) == (len(table), len(table))
    # Steps that were not trained on have a value too, so that the others' credit can be computed again.
    for failed in (other for other in played if other.group == played[4].group):
        for step in failed.steps:
            step.reward = 0.0
    table = StepTable.from_episodes(drop_incomplete(played, 1)[0])
    dropping = TdOptions(drop_reward_free_groups=True)
    partly = table.recorded(credit.get("td")(table.batch({"value": values}), dropping), {"value": values})
    write_episodes(run.rollout_path(1), played, partly)
    source = read_run(run.path, None)
    trained_on = sum("advantage" in numbers for numbers in partly.values())
    assert 0 < trained_on < len(partly) == len(table)
    assert equal_to_recorded(source, compute(source, "td", dropping)) == (trained_on, trained_on)
    write_episodes(run.rollout_path(1), played, dict(list(recorded.items())[1:]))
    source = read_run(run.path, None)
    with pytest.raises(EstimatorError, match=r"td needs value of every step, which .* run, iteration 1 does not hold"):
        compute(source, "td", TdOptions())
    # What an estimator without a critic records under that name is not a critic's.
    config = resolve(["--algo.advantage.estimator", "grpo", "--env.name", "vault"])
    other = RunFolder.create(tmp_path / "other", config.to_dict(), "", command=[])
    write_episodes(other.rollout_path(1), played, recorded)
    with pytest.raises(EstimatorError, match="td needs value"):
        compute(read_run(other.path, "1"), "td", TdOptions())


def test_groups_that_the_run_filtered_out_get_no_credit(tmp_path: Path) -> None:
    """Normalising over the batch would notice a group too many."""
    flags = ["--env.name", "vault", "--algo.dynamic_filtering_enable", "--algo.advantage.normalize", "batch"]
    config = resolve(flags)
    run = RunFolder.create(tmp_path / "run", config.to_dict(), "", command=[])
    episodes = [episode(number, success=number % 4 == 0 and number < 4, steps=3) for number in range(8)]
    kept = [played for played in episodes if played.group == episodes[0].group]
    table = StepTable.from_episodes(kept)
    estimator, options = credit.get("gagpo"), config.options(families()[0])
    recorded = table.recorded(estimator(table.batch(), options))
    write_episodes(run.rollout_path(1), episodes, recorded)
    source = read_run(run.path, None)
    assert len(kept) == 4
    assert equal_to_recorded(source, compute(source, "gagpo", options)) == (len(table), len(table))


def test_a_difference_in_the_last_bit_is_counted(tmp_path: Path) -> None:
    part = steps_of(EXAMPLE)
    advantage = credit_of(part.batch(np.arange(8)), "grpo").advantage
    numbers = [float(value) for value in advantage]
    numbers[3] = float(np.nextafter(numbers[3], 0))
    recorded = {row: {"advantage": number} for row, number in enumerate(numbers)}
    source = Source("x", [Steps(part.columns, part.identity, recorded)])
    assert equal_to_recorded(source, compute(source, "grpo", credit.get("grpo").options_cls())) == (7, 8)


def test_parts_get_credit_by_themselves() -> None:
    other = [("task", "a", "AB", [1.0]), ("task", "b", "AB", [0.0])]
    both = Source("both", [steps_of(EXAMPLE), steps_of(other)])
    options = credit.get("grpo").options_cls()
    found = compute(both, "grpo", options)
    alone = [compute(Source("one", [part]), "grpo", options) for part in both.parts]
    for name in QUANTITIES:
        expected = np.concatenate([one.values[name] for one in alone])
        np.testing.assert_array_equal(found.values[name], expected)
    for name, value in found.diagnostics.items():
        assert value == pytest.approx(np.mean([one.diagnostics[name] for one in alone]))


def test_groups_that_are_too_small_have_no_credit() -> None:
    source = Source("x", [steps_of([("h", "v", "XYz", [0, 1]), *EXAMPLE])])
    found = compute(source, "rloo", credit.get("rloo").options_cls())
    assert np.isnan(found.values["advantage"]).tolist() == [True, True] + [False] * 8
    assert found.keep.tolist() == [False, False] + [True] * 8
    with pytest.raises(EstimatorError, match="rloo compares at least 2 trajectories of a group, and no group of lone"):
        compute(Source("lone", [steps_of(EXAMPLE[:1])]), "rloo", credit.get("rloo").options_cls())


def test_steps_that_the_estimator_drops_are_not_kept() -> None:
    source = Source("x", [steps_of([*EXAMPLE, ("h", "v", "Xz", [0]), ("h", "w", "Xz", [0])])])
    found = compute(source, "grpo", credit.get("grpo").options_cls(drop_reward_free_groups=True))
    assert found.keep.tolist() == [True] * 8 + [False] * 2
    assert found.values["advantage"][8:].tolist() == [0, 0]


def test_a_column_of_a_model_has_to_be_there() -> None:
    credit.register("critic", credit.EstimatorOptions, needs={"value", "ig"})(
        lambda batch, options: credit.CreditResult.of(batch, options, advantage=batch.required("value"))
    )
    part = steps_of(EXAMPLE)
    with pytest.raises(
        EstimatorError, match=r"critic needs ig and value of every step, which a model .* file does not"
    ):
        compute(Source("file", [part]), "critic", OPTIONS)
    part = Steps({**part.columns, "value": [0.5] * 8, "ig": [1.0] * 8}, part.identity)
    assert compute(Source("file", [part]), "critic", OPTIONS).values["advantage"].tolist() == [0.5] * 8


def test_a_damaged_file_of_rollouts(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(RunFolderError, match=r"x.jsonl.gz is"):
        read_rollouts(path)


def test_agreement_by_hand() -> None:
    first = result([1, -1, 2, 0, 1e-12, 5, 9], [True] * 6 + [False])
    second = result([3, 1, 1, 1, -2, 0.5, 9], name="y")
    found = agreement(first, second)
    assert (found.first, found.second, found.steps, found.signed) == ("x", "y", 6, 4)
    assert found.same_sign == 3 / 4
    assert len(agreements([first, second, first])) == 3


def test_agreement_where_there_is_nothing_to_compare() -> None:
    for one, other in (([0, 0], [1, 2]), ([1, 1], [1, 2]), ([1], [1]), ([], [])):
        assert agreement(result(one), result(other)).rank_correlation is None
    assert agreement(result([0, 0]), result([1, 2])).same_sign is None
    assert agreement(result([1, 2], [True, False]), result([1, 2], [False, True])).steps == 0


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_rank_correlation_is_the_correlation_of_ranks(pairs: list[tuple[int, int]]) -> None:
    a, b = (list(values) for values in zip(*pairs, strict=True))
    found = agreement(result(a), result(b)).rank_correlation
    if found is not None:
        assert found == pytest.approx(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
        assert agreement(result(b), result(a)).rank_correlation == pytest.approx(found)
    else:
        assert len(set(a)) == 1 or len(set(b)) == 1
