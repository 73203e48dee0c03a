"""The losses that are not OpenRLHF's: values and gradients against loops, and what each leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openrlhf_gagpo.training.corrections import SamplerCorrection
from openrlhf_gagpo.training.objective import LossScale, Objective, step_loss
from support.estimator_cases import CASES
from support.objectives import actions, objective
from support.plain_losses import constant_length_loss, sampler_weights, weighted_gradient_loss

Rows = Sequence[Sequence[float]]
_SAMPLING = {
    "tis": ("token", "clip"),
    "icepop": ("token", "mask"),
    "seq_mask_tis": ("seq", "mask"),
    "seq_tis": ("seq-product", "clip"),
    "seq_mis": ("seq-product", "mask"),
}
"""Published name -> level and mode."""


def _padded(rows: Rows) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)


def _mask(rows: Rows) -> Tensor:
    width = max(map(len, rows))
    return (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()


def _computed(
    chosen: Objective, new: Rows, old: Rows, advantages: Sequence[float], sampling: Rows | None = None
) -> tuple[float, list[list[float]]]:
    """The loss, and its derivative by each token's log-probability."""
    log_probs = _padded(new).requires_grad_()
    given = actions(
        _padded(old),
        torch.tensor(advantages, dtype=torch.float64),
        _mask(new),
        sampling=None if sampling is None else _padded(sampling),
        clip_scale=torch.ones(len(new), dtype=torch.float64),
    )
    loss, _ = step_loss(log_probs, None, given, LossScale(len(new), sum(map(len, new))), chosen)
    (slopes,) = torch.autograd.grad(loss, log_probs)
    return loss.item(), [slope[: len(row)].tolist() for slope, row in zip(slopes, new, strict=True)]


def _assert_close(given: Rows, expected: Rows) -> None:
    assert list(map(len, given)) == list(map(len, expected))
    # The numbers are small, so that a larger absolute tolerance would hide a wrong one.
    np.testing.assert_allclose(np.concatenate(given), np.concatenate(expected), rtol=1e-9, atol=1e-12)


@st.composite
def _batches(draw: st.DrawFn) -> dict[str, Any]:
    seed = draw(st.integers(0, 2**32 - 1))
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
    rng = np.random.default_rng(seed)
    old = [(rng.normal(size=length) - 1).tolist() for length in lengths]
    spread = draw(st.sampled_from([0.1, 1.0]))
    return {
        "old": old,
        "new": [(np.array(row) + spread * rng.normal(size=len(row))).tolist() for row in old],
        "sampling": [(np.array(row) + spread * rng.normal(size=len(row))).tolist() for row in old],
        "advantages": rng.normal(size=len(lengths)).tolist(),
    }


@settings(max_examples=60, deadline=None)
@given(batch=_batches(), low=st.sampled_from([0.0, 0.2, 1.0]), high=st.sampled_from([0.0, 0.3, 5.0]))
def test_cispo_equals_the_loop(batch: dict[str, Any], low: float, high: float) -> None:
    new, old, advantages = batch["new"], batch["old"], batch["advantages"]
    loss, slopes = _computed(objective("cispo", eps_clip_low_high=(low, high)), new, old, advantages)
    expected, expected_slopes = weighted_gradient_loss(new, old, advantages, low, high)
    assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
    _assert_close(slopes, expected_slopes)


@settings(max_examples=60, deadline=None)
@given(batch=_batches(), limit=st.integers(5, 40))
def test_a_constant_length_equals_the_loop(batch: dict[str, Any], limit: int) -> None:
    new, old, advantages = batch["new"], batch["old"], batch["advantages"]
    chosen = objective(
        "ppo", loss_agg_mode="seq-mean-token-sum-norm", response_limit=limit, eps_clip_low_high=(0.2, 0.3)
    )
    loss, slopes = _computed(chosen, new, old, advantages)
    expected, expected_slopes = constant_length_loss(new, old, advantages, 0.2, 0.3, limit)
    assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
    _assert_close(slopes, expected_slopes)


@settings(max_examples=60, deadline=None)
@given(batch=_batches(), scheme=st.sampled_from(sorted(_SAMPLING)), low=st.sampled_from([0.0, 0.5]))
def test_corrected_losses_equal_the_loop(batch: dict[str, Any], scheme: str, low: float) -> None:
    new, old, sampling, advantages = (batch[name] for name in ("new", "old", "sampling", "advantages"))
    level, mode = _SAMPLING[scheme]
    weights = sampler_weights(old, sampling, level, mode, low, 2.0)
    correction = SamplerCorrection(level, mode, "ratio", (low, 2.0))
    chosen = objective("cispo", eps_clip_low_high=(0.2, 0.3), correction=correction)
    loss, slopes = _computed(chosen, new, old, advantages, sampling)
    expected, expected_slopes = weighted_gradient_loss(new, old, advantages, 0.2, 0.3, weights)
    assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
    _assert_close(slopes, expected_slopes)


def test_cispo_reaches_tokens_that_the_surrogate_clips_away() -> None:
    new, old = [[0.0, -1.0]], [[-2.0, -1.0]]
    _, clipped = _computed(objective("ppo"), new, old, [1.0])
    _, bounded = _computed(objective("cispo", eps_clip_low_high=(0.2, 0.2)), new, old, [1.0])
    assert clipped[0][0] == 0
    assert bounded[0] == pytest.approx([-0.6, -0.5])


def test_cispos_own_default_has_no_lower_bound() -> None:
    assert objective("cispo").options.eps_clip_low_high == (1.0, 5.0)
    _, slopes = _computed(objective("cispo"), [[-9.0, 0.0]], [[0.0, -9.0]], [1.0])
    assert slopes[0] == pytest.approx([-np.exp(-9.0) / 2, -3.0])


def test_a_ratio_that_overflows_is_finite_in_cispo() -> None:
    loss, slopes = _computed(objective("cispo", eps_clip_low_high=(1.0, 1e12)), [[0.0]], [[-1e4]], [1.0])
    assert loss == 0
    assert slopes[0][0] == pytest.approx(-np.exp(20.0))


@pytest.mark.parametrize("name", ["cispo", "gspo", "ppo"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("far", [1e4, -1e4])
def test_an_extreme_change_of_a_log_probability_gives_finite_numbers(name: str, advantage: float, far: float) -> None:
    """In single precision e^1e4 is infinite, for a token as for the mean over an action's tokens."""
    log_probs = torch.tensor([[min(far, 0.0), -1.0], [-1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[min(-far, 0.0), -1.5], [-1.5, -2.0]])
    given = actions(old, torch.full((2,), advantage), torch.ones(2, 2))
    # With a clip range that leaves everything to the bound of the exponent.
    loss, sums = step_loss(log_probs, None, given, LossScale(2.0, 4), objective(name, eps_clip_low_high=(1.0, 1e30)))
    (slopes,) = torch.autograd.grad(loss, log_probs)
    assert loss.isfinite()
    assert slopes.isfinite().all()
    assert slopes[1].abs().max() > 0
    assert all(value.isfinite().all() for value in sums.values())


@pytest.mark.parametrize("name", ["cispo", "gspo", "ppo"])
def test_the_clip_scale_moves_both_bounds(name: str) -> None:
    """Half a scale is half a range, on either side, in every loss that clips."""
    old = torch.zeros(4, 1, dtype=torch.float64)
    # Two rows below and two above the range, whose advantages make the bound count.
    log_probs = torch.tensor([-3.0, -3.0, 3.0, 3.0], dtype=torch.float64)[:, None]
    advantages = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 1.0, 0.5], dtype=torch.float64)

    def loss(row: int) -> float:
        given = actions(
            old[row : row + 1], advantages[row : row + 1], torch.ones(1, 1), clip_scale=scale[row : row + 1]
        )
        chosen = objective(name, eps_clip_low_high=(0.4, 0.2))
        return step_loss(log_probs[row : row + 1], None, given, LossScale(1, 1), chosen)[0].item()

    bounds = [0.6, 0.8, 1.2, 1.1]
    # The first kind of loss multiplies the bound by the log-probability.
    factors = log_probs[:, 0].tolist() if name == "cispo" else [1.0] * 4
    expected = [-b * a * f for b, a, f in zip(bounds, advantages.tolist(), factors, strict=True)]
    assert [loss(row) for row in range(4)] == pytest.approx(expected)


_GOLDEN = [pytest.param(case, id=f"{case['case']}-{case['tag']}") for case in CASES]


def _shuffled(case: dict[str, Any], seed: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    order = np.arange(len(case["rows"]["group"]))
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)

    def moved(columns: dict[str, Any]) -> dict[str, Any]:
        return {
            name: [values[row] for row in order] if isinstance(values, list) else values
            for name, values in columns.items()
        }

    return moved(case["rows"]), moved(case["expected"])


@pytest.mark.skipif(not CASES, reason="the recorded cases lie beside the checkout")
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("case", _GOLDEN)
def test_recorded_losses_and_gradients(case: dict[str, Any], seed: int | None) -> None:
    rows, expected = _shuffled(case, seed)
    params = case["params"]
    clip = (params["clip_low"], params["clip_high"])
    inputs = (rows["logp"], rows["old_logp"], expected["dr_grpo"])
    losses = {
        "loss.cispo": ("cispo", {}),
        "loss.dr_grpo": ("ppo", {"loss_agg_mode": "seq-mean-token-sum-norm", "response_limit": params["max_tokens"]}),
    }
    for key, (name, options) in losses.items():
        chosen = objective(name, eps_clip_low_high=clip, **options)
        loss, slopes = _computed(chosen, *inputs)
        assert loss == pytest.approx(expected[key], rel=1e-9, abs=1e-12)
        _assert_close(slopes, expected[f"{key}.grad"])
        for scheme in ("tis", "seq_mis"):
            level, mode = _SAMPLING[scheme]
            bounds = (0.0, params["seq_high"]) if level == "seq-product" else (params["is_low"], params["is_high"])
            correction = SamplerCorrection(level, mode, "ratio", bounds)
            corrected = objective(name, eps_clip_low_high=clip, correction=correction, **options)
            loss, _ = _computed(corrected, *inputs, rows["rollout_logp"])
            assert loss == pytest.approx(expected[f"{key}.{scheme}"], rel=1e-9, abs=1e-12)
