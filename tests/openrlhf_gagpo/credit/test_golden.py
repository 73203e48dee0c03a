"""Estimators against recorded advantages of an independent slow implementation (``data/credit_golden.jsonl.gz``)."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo import credit
from support.paths import DATA

CASES: list[dict[str, Any]] = [
    json.loads(line) for line in gzip.decompress((DATA / "credit_golden.jsonl.gz").read_bytes()).splitlines()
]
ROWS = {"statistics": "rows"}
KEYS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gagpo": ("gagpo", {}, "advantage"),
    "gagpo.return": ("gagpo", {}, "return_"),
    "gagpo.vbar": ("gagpo", {}, "value"),
    "gagpo.delta": ("gagpo", {}, "td_residual"),
    "gagpo.raw": ("gagpo", {"normalize": "none"}, "advantage"),
    "gagpo.no_norm": ("gagpo", {"normalize": "none"}, "advantage"),
    "gagpo.batch_norm": ("gagpo", {"normalize": "batch"}, "advantage"),
    "gagpo.lam0": ("gagpo", {"lambd": 0.0}, "advantage"),
    "gagpo.lam1": ("gagpo", {"lambd": 1.0}, "advantage"),
    "gagpo.mc": ("gagpo", {"monte_carlo": True}, "advantage"),
    "gagpo.broadcast": ("gagpo", {"broadcast_coef": 1.0, **ROWS}, "advantage"),
    "gagpo.ddof0": ("gagpo", {"ddof": 0}, "advantage"),
    "gagpo.penalty_local": ("gagpo", {"invalid_penalty_mode": "local"}, "advantage"),
    "gagpo.bootstrap": ("gagpo", {"truncation": "bootstrap"}, "advantage"),
    "gagpo.passthrough": ("gagpo", {"singleton": "passthrough"}, "advantage"),
    "gigpo.mean_norm": ("gigpo", {"gigpo_mode": "mean_norm", **ROWS}, "advantage"),
    "gigpo.mean_norm.AE": ("gigpo", {"gigpo_mode": "mean_norm", "step_coef": 0.0, **ROWS}, "advantage"),
    "gigpo.mean_std_norm": ("gigpo", {"gigpo_mode": "mean_std_norm", **ROWS}, "advantage"),
    "gigpo.mean_std_norm.AE": ("gigpo", {"gigpo_mode": "mean_std_norm", "step_coef": 0.0, **ROWS}, "advantage"),
    "grpo": ("grpo", ROWS, "advantage"),
    "grpo.no_std": ("grpo", {"no_std_norm": True, **ROWS}, "advantage"),
    "grpo.per_traj": ("grpo", {"statistics": "trajectories"}, "advantage"),
    "rloo": ("rloo", ROWS, "advantage"),
    "rloo.per_traj": ("rloo", {"statistics": "trajectories"}, "advantage"),
    "reinforce_pp_baseline": ("reinforce_baseline", ROWS, "advantage"),
    "ppo_step_gae": ("gae", {"whiten": False}, "advantage"),
    "ppo_step_gae.whiten": ("gae", {}, "advantage"),
    "ppo_row": ("gae", {"gae_level": "token", "lambd": 1.0, "invalid_penalty_mode": "local"}, "advantage"),
}


def run(case: dict[str, Any], name: str, settings: dict[str, Any], order: np.ndarray) -> credit.CreditResult:
    columns = {key: [column[row] for row in order] for key, column in case["rows"].items()}
    done, truncated = np.array(columns.pop("done")), np.array(columns.pop("truncated"))
    # A critic that is constant within a response.
    token_value = np.repeat(columns["value"], columns["n_tokens"])
    batch = credit.StepBatch.from_columns(
        **columns, token_value=token_value, terminated=done & ~truncated, truncated=truncated
    )
    estimator, params = credit.get(name), case["params"]
    given = {
        "gamma": params["gamma"],
        "lambd": params["lam"],
        "step_coef": params["w"],
        "invalid_penalty": params["penalty"],
    }
    names = estimator.options_cls.__dataclass_fields__
    return estimator(batch, estimator.options_cls(**({k: v for k, v in given.items() if k in names} | settings)))


def orders(case: dict[str, Any]) -> list[np.ndarray]:
    count = len(case["rows"]["step"])
    return [np.arange(count), np.random.default_rng(case["case"]).permutation(count)]


def comparable(case: dict[str, Any], key: str) -> bool:
    """Statistics per trajectory were recorded with the penalty of whichever row came first; here it is step 0's."""
    return not key.endswith(".per_traj") or case["ordered"] or not case["params"]["penalty"]


@pytest.mark.parametrize(
    ("case", "key"),
    [pytest.param(case, key, id=f"{key}-{case['case']}") for case in CASES for key in KEYS if comparable(case, key)],
)
def test_matches_recorded_numbers_in_any_row_order(case: dict[str, Any], key: str) -> None:
    name, settings, field = KEYS[key]
    for order in orders(case):
        found = getattr(run(case, name, settings, order), field)
        np.testing.assert_allclose(found, np.array(case["expected"][key])[order], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("mode", ["mean_norm", "mean_std_norm"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["case"]))
def test_step_part_of_gigpo(case: dict[str, Any], mode: str) -> None:
    for order in orders(case):
        with_step, without = (
            run(case, "gigpo", {"gigpo_mode": mode, "step_coef": coef, **ROWS}, order).advantage for coef in (1.0, 0.0)
        )
        expected = np.array(case["expected"][f"gigpo.{mode}.AS"])[order]
        np.testing.assert_allclose(with_step - without, expected, rtol=1e-9, atol=1e-7)


def test_all_cases_are_there() -> None:
    assert len(CASES) == 24
    assert sum(comparable(case, key) for case in CASES for key in KEYS) == 24 * len(KEYS) - 18
    recorded = set(CASES[0]["expected"])
    assert recorded - set(KEYS) == {"gigpo.mean_norm.AS", "gigpo.mean_std_norm.AS"}
