"""Graph-based estimators against recorded numbers of independent plain loops; skipped where they are not at hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo import credit
from openrlhf_gagpo.credit.estimators import graphgpo
from openrlhf_gagpo.credit.statistics import standardised, statistics_of
from support.paths import REPOSITORY
from support.step_batches import shuffled

GOLDEN = REPOSITORY.parent / "shared" / "golden" / "estimators" / "graph.jsonl"
CASES: list[dict[str, Any]] = (
    [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()] if GOLDEN.is_file() else []
)

pytestmark = pytest.mark.skipif(not CASES, reason="no recordings of graph-based estimators here")

MEAN = {"gigpo_mode": "mean_norm"}
STEP = {"step_coef": 1.0, "episode_coef": 0.0}
EPISODE = {"step_coef": 0.0, "episode_coef": 1.0}
EDGE = {"edge": "next_state"}
REWARD = {"value_of": "reward"}
BELLMAN = {"value": "bellman"}
KEYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "graphgpo": ("graphgpo", {}, "advantage"),
    "graphgpo.return": ("graphgpo", {}, "return_"),
    "graphgpo.step": ("graphgpo", STEP, "advantage"),
    "graphgpo.episode": ("graphgpo", EPISODE, "advantage"),
    "graphgpo.mean_norm": ("graphgpo", MEAN, "advantage"),
    "graphgpo.progress": ("graphgpo", {"progress": True}, "advantage"),
    "graphgpo.progress.return": ("graphgpo", {"progress": True}, "return_"),
    "graphgpo.dead_end": ("graphgpo", {"failed_end": "dead_end"}, "advantage"),
    "g2po": ("g2po", {}, "advantage"),
    "g2po.value": ("g2po", {}, "value"),
    "g2po.step": ("g2po", STEP, "advantage"),
    "g2po.mean_norm": ("g2po", MEAN, "advantage"),
    "g2po.code": ("g2po", {"end_value": "exact_goal"}, "advantage"),
    "crbc": ("crbc", {}, "advantage"),
    "crbc.value": ("crbc", {}, "value"),
    "crbc.step": ("crbc", STEP, "advantage"),
    "crbc.edge.step": ("crbc", {**STEP, **EDGE}, "advantage"),
    "crbc.reward.value": ("crbc", REWARD, "value"),
    "crbc.reward.step": ("crbc", {**STEP, **REWARD}, "advantage"),
    "gagpo_bellman": ("gagpo", BELLMAN, "advantage"),
    "gagpo_bellman.value": ("gagpo", BELLMAN, "value"),
    "gagpo_bellman.delta": ("gagpo", BELLMAN, "td_residual"),
    "gagpo_bellman.raw": ("gagpo", {**BELLMAN, "normalize": "none"}, "advantage"),
}
DISTANCES = {"graphgpo.distance": {}, "graphgpo.dead_end.distance": {"failed_end": "dead_end"}}
PARTS = ("g2po.within", "g2po.gain")


def batch_in(case: dict[str, Any], order: np.ndarray) -> credit.StepBatch:
    columns = shuffled(case["rows"], order)
    counts = columns.pop("invalid")
    columns["invalid"] = [count > 0 for count in counts]
    columns["inadmissible"] = [count == 2 for count in counts]  # costs twice the penalty
    return credit.StepBatch.from_columns(**columns)


def options_of(case: dict[str, Any], name: str, settings: dict[str, Any]) -> credit.EstimatorOptions:
    params, options_cls = case["params"], credit.get(name).options_cls
    given = {
        "gamma": params["gamma"],
        "lambd": params["lambd"],
        "omega": params["omega"],
        "goal_reward": params["success_reward"],
        "success_above": params["success_above"],
        "step_coef": params["step_coef"],
        "episode_coef": params["episode_coef"],
        "std_floor": params["std_floor"],
        "invalid_penalty": params["penalty"],
        "inadmissible_penalty": 2 * params["penalty"],
        "invalid_penalty_mode": params["penalty_mode"],
        "statistics": params["statistics"],
    }
    if name == "crbc":
        given |= {"gamma": params["beta"], "step_coef": params["crbc_step_coef"]}
    known = options_cls.__dataclass_fields__
    return options_cls(**({key: value for key, value in given.items() if key in known} | settings))


def run(case: dict[str, Any], name: str, settings: dict[str, Any], order: np.ndarray) -> credit.CreditResult:
    return credit.get(name)(batch_in(case, order), options_of(case, name, settings))


def orders(case: dict[str, Any]) -> list[np.ndarray]:
    count = len(case["rows"]["step"])
    return [np.arange(count), np.random.default_rng(case["case"]).permutation(count)]


def assert_recorded(found: np.ndarray, case: dict[str, Any], key: str, order: np.ndarray) -> None:
    np.testing.assert_allclose(found, np.array(case["expected"][key])[order], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['tag']}-{case['case']}")
def test_matches_recorded_numbers_in_any_row_order(case: dict[str, Any], key: str) -> None:
    name, settings, field = KEYS[key]
    for order in orders(case):
        assert_recorded(getattr(run(case, name, settings, order), field), case, key, order)


@pytest.mark.parametrize("key", DISTANCES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['tag']}-{case['case']}")
def test_distances(case: dict[str, Any], key: str) -> None:
    for order in orders(case):
        batch = batch_in(case, order)
        options = options_of(case, "graphgpo", DISTANCES[key])
        assert isinstance(options, graphgpo.GraphgpoOptions)
        _, there = graphgpo.success_distances(batch, options)
        assert_recorded(batch.restore(there), case, key, order)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['tag']}-{case['case']}")
def test_both_comparisons_of_g2po(case: dict[str, Any]) -> None:
    for order in orders(case):
        result = run(case, "g2po", STEP, order)
        assert result.td_residual is not None
        batch, gain = result.batch, result.td_residual[result.batch.order]
        among_steps = batch.restore(standardised(gain, batch.groups, statistics_of(gain, batch.groups)))
        assert_recorded(among_steps, case, "g2po.gain", order)
        assert_recorded(result.advantage - among_steps, case, "g2po.within", order)


def test_all_keys_are_compared() -> None:
    assert len(CASES) == 20
    recorded = {key for case in CASES for key in case["expected"]}
    compared = {*KEYS, *DISTANCES, *PARTS}
    assert compared <= recorded
    assert {key.split(".")[0] for key in recorded - compared} == {"rtmc", "tigpo"}
