"""HGPO, REINFORCE++, A2TGPO and IGPO against recordings of independent plain loops; skipped where there are none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo import credit
from openrlhf_gagpo.losses import LossBatch, gspo
from openrlhf_gagpo.losses.surrogate import ClipOptions
from support.paths import REPOSITORY

GOLDEN = REPOSITORY.parent / "shared" / "golden" / "estimators"
MORE, TURN = "more.jsonl", "turn_gain.jsonl"

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no recordings of the estimators here")

KEYS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "hgpo": (MORE, "hgpo", {}, "advantage"),
    "hgpo.return": (MORE, "hgpo", {}, "return_"),
    "reinforce_pp": (MORE, "reinforce", {}, "advantage"),
    "dr_grpo": (MORE, "grpo", {"no_std_norm": True}, "advantage"),
    "a2tgpo": (TURN, "a2tgpo", {}, "advantage"),
    "a2tgpo.clip": (TURN, "a2tgpo", {}, "clip_scale"),
    "a2tgpo.outcome": (TURN, "a2tgpo", {"a2tgpo_alpha": 0.0}, "advantage"),
    "a2tgpo.no_std": (TURN, "a2tgpo", {"no_std_norm": True}, "advantage"),
    "a2tgpo.unbiased": (TURN, "a2tgpo", {"turn_norm": "unbiased"}, "advantage"),
    "igpo.separate": (TURN, "igpo", {}, "advantage"),
    "igpo.separate.no_std": (TURN, "igpo", {"no_std_norm": True}, "advantage"),
    "igpo.joint": (TURN, "igpo", {"ig_norm": "joint"}, "advantage"),
}
PARTS = {"a2tgpo.acc": {}, "a2tgpo.unbiased.u": {"turn_norm": "unbiased"}}
"""Parts of A2TGPO's advantage, which are what is left of it without the outcome."""
LEFT_OUT = {
    MORE: ("bilevel_gae", "keep.", "is.", "loss."),  # a critic's, filters and losses
    TURN: ("ig.", "a2tgpo.code", "a2tgpo.unbiased_std", "a2tgpo.z", "a2tgpo.loss"),
}
"""What is recorded beyond the estimators and their options. ``a2tgpo.z`` and ``.loss`` have tests of their own."""


@cache
def cases(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / file).read_text(encoding="utf-8").splitlines()]


def columns_of(case: dict[str, Any]) -> dict[str, Any]:
    rows = case["rows"]
    places = list(zip(rows["traj"], rows["step"], strict=True))
    state = rows.get("state", [f"{traj}-{step}" for traj, step in places])
    at = dict(zip(places, state, strict=True))
    columns = {name: rows[name] for name in ("group", "traj", "step", "reward")}
    columns |= {
        "state": state,
        "next_state": [at.get((traj, step + 1), "end") for traj, step in places],
        "terminated": [(traj, step + 1) not in at for traj, step in places],
        "truncated": [False] * len(places),
    }
    if "ig" in rows:
        columns["ig"] = [np.nan if gain is None else gain for gain in rows["ig"]]
    if "logp" in rows:
        columns["n_tokens"] = [len(tokens) for tokens in rows["logp"]]
    return columns


def results(case: dict[str, Any], name: str, settings: dict[str, Any]) -> Iterator[tuple[np.ndarray, Any]]:
    """An order of the rows and the result for it: as recorded, and shuffled."""
    estimator, params = credit.get(name), case["params"]
    recorded = {
        "gamma": "gamma",
        "gigpo_mode": "mode",
        "hgpo_history": "history",
        "hgpo_length_alpha": "length_alpha",
        "hgpo_base": "base_group",
        "a2tgpo_alpha": "alpha",
        "a2tgpo_beta": "beta",
    }
    names = estimator.options_cls.__dataclass_fields__
    given = {ours: params[theirs] for ours, theirs in recorded.items() if ours in names and theirs in params}
    columns = columns_of(case)
    count = len(columns["step"])
    for order in (np.arange(count), np.random.default_rng(case["case"]).permutation(count)):
        batch = credit.StepBatch.from_columns(
            **{key: [column[row] for row in order] for key, column in columns.items()}
        )
        yield order, estimator(batch, estimator.options_cls(**(given | settings)))


def expected(case: dict[str, Any], key: str, order: np.ndarray) -> np.ndarray:
    return np.array(case["expected"][key])[order]


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("key", KEYS)
def test_matches_recorded_numbers_in_any_row_order(key: str) -> None:
    file, name, settings, field = KEYS[key]
    for case in cases(file):
        for order, result in results(case, name, settings):
            wanted = expected(case, key, order)
            if key == "dr_grpo":  # GRPO leaves the score of an episode that is alone; there it was recorded as 0
                alone = result.batch.groups.expand(result.batch.trajectory_groups.count == 1)
                wanted = np.where(result.batch.restore(alone), result.return_, wanted)
            close(getattr(result, field), wanted)


@pytest.mark.parametrize("key", PARTS)
def test_parts_of_a2tgpo(key: str) -> None:
    for case in cases(TURN):
        alone = {"a2tgpo_alpha": 0.0}
        whole = results(case, "a2tgpo", {"a2tgpo_alpha": 1.0, **PARTS[key]})
        for (order, both), (_, outcome) in zip(whole, results(case, "a2tgpo", alone), strict=True):
            close(both.advantage - outcome.advantage, expected(case, key, order))


def test_z_of_a2tgpo_from_its_clip_factor() -> None:
    for case in cases(TURN):
        for order, result in results(case, "a2tgpo", {"a2tgpo_beta": 0.5}):
            close(2 * np.arctanh((result.clip_scale - 1) / 0.5), expected(case, "a2tgpo.z", order))


def test_loss_of_a2tgpo() -> None:
    torch = pytest.importorskip("torch")
    compared = 0
    for case in cases(TURN):
        if "a2tgpo.loss" not in case["expected"]:
            continue
        compared += 1
        for order, result in results(case, "a2tgpo", {}):
            new, old = ([case["rows"][name][row] for row in order] for name in ("logp", "old_logp"))
            width = max(map(len, new))

            def padded(lists: list[list[float]], width: int = width) -> Any:
                return torch.tensor(
                    [[*tokens, *[0.0] * (width - len(tokens))] for tokens in lists], dtype=torch.float64
                )

            log_probs, mask = padded(new).requires_grad_(), padded([[1.0] * len(tokens) for tokens in new])
            batch = LossBatch(
                log_probs=log_probs,
                old_log_probs=padded(old),
                advantage=torch.tensor(result.advantage).unsqueeze(-1),
                mask=mask,
                clip_scale=torch.tensor(result.clip_scale).unsqueeze(-1),
                rows_per_step=sum(map(bool, new)),  # a row without tokens was not counted
                tokens_per_step=int(mask.sum()),
                response_limit=1,
                weight=mask,
            )
            params = case["params"]
            loss = gspo.gspo(batch, ClipOptions(eps_clip_low_high=(params["clip_low"], params["clip_high"])))
            loss.loss.backward()
            close(loss.loss.detach().numpy(), case["expected"]["a2tgpo.loss"])
            close(loss.ratio.detach().numpy()[:, 0], expected(case, "a2tgpo.loss.ratio", order))
            bound = [case["expected"]["a2tgpo.loss.bound"][row] for row in order]
            assert (loss.clipped[:, 0].numpy() == bound).all()
            gradient = [case["expected"]["a2tgpo.loss.grad"][row] for row in order]
            close(log_probs.grad.numpy(), padded(gradient).numpy())
    assert compared == 16


def test_every_recorded_key_is_compared_or_left_out_on_purpose() -> None:
    for file, count in ((MORE, 20), (TURN, 24)):
        assert len(cases(file)) == count
        recorded = {key for case in cases(file) for key in case["expected"]}
        ours = {key for key, entry in KEYS.items() if entry[0] == file} | (PARTS.keys() if file == TURN else set())
        assert ours <= recorded
        assert all(key in ours or key.startswith(LEFT_OUT[file]) for key in recorded)
