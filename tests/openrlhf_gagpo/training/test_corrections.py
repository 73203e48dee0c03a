"""Weights that correct for the sampler: by hand, against loops and recorded numbers, and what losses do with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openrlhf_gagpo import losses
from openrlhf_gagpo.training.corrections import SamplerCorrection, sampler_weights
from openrlhf_gagpo.training.objective import LossScale, finish_metrics, merge_sums, step_loss
from support import plain_losses
from support.estimator_cases import CASES
from support.objectives import actions, objective

TIS = SamplerCorrection("token", "clip", "ratio", (0.5, 2.0))
ICEPOP = SamplerCorrection("token", "mask", "ratio", (0.5, 2.0))


def _logs(*ratios: float) -> Tensor:
    return torch.tensor([ratios], dtype=torch.float64).log()


def _weights(ratios: list[float], correction: SamplerCorrection, mask: list[int] | None = None) -> tuple[Any, Any]:
    given = _logs(*ratios)
    ones = torch.tensor([mask or [1] * len(ratios)], dtype=torch.float64)
    weight, outside = sampler_weights(given, torch.zeros_like(given), ones, correction)
    return weight[0].tolist(), outside[0].tolist()


@pytest.mark.parametrize(
    ("level", "mode", "expected", "outside"),
    [
        ("token", "clip", [0.5, 1.0, 2.0], [True, False, True]),
        ("token", "mask", [0.0, 1.0, 0.0], [True, False, True]),
        # The geometric mean is 0.25^(1/3) = 0.63.
        ("seq", "mask", [0.0625, 1.0, 4.0], [False] * 3),
        ("seq-product", "clip", [0.5] * 3, [True] * 3),
        ("seq-product", "mask", [0.0] * 3, [True] * 3),
    ],
)
def test_weights_by_hand(level: str, mode: str, expected: list[float], outside: list[bool]) -> None:
    weight, changed = _weights([0.0625, 1.0, 4.0], SamplerCorrection(level, mode, "ratio", (0.5, 2.0)))
    assert weight == pytest.approx(expected)
    assert changed == outside


def test_padding_has_no_say_and_no_weight() -> None:
    weight, changed = _weights([1.5, 1e6, 1.0], SamplerCorrection("seq", "mask", "ratio", (0.5, 2.0)), [1, 0, 1])
    assert weight == pytest.approx([1.5, 0.0, 1.0])
    assert changed == [False] * 3
    weight, changed = _weights([1.5, 1e6], SamplerCorrection("seq-product", "mask", "ratio", (0.0, 2.0)), [0, 0])
    assert weight == [0.0, 0.0]
    assert changed == [False, False]


def test_divergences_by_hand() -> None:
    sampling, old = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.5]]).log()
    ones = torch.ones(1, 2)
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    for gating, value in (("tv", 0.25), ("binary_kl", kl)):
        for share, dropped in ((0.99, True), (1.01, False)):
            correction = SamplerCorrection("token", "mask", gating, (0.0, share * value))
            weight, outside = sampler_weights(old, sampling, ones, correction)
            assert outside.tolist() == [[dropped, False]]
            torch.testing.assert_close(weight, torch.tensor([[0.0 if dropped else 0.5, 1.0]]))
            # Per action, the mean over its tokens counts.
            correction = SamplerCorrection("seq", "mask", gating, (0.0, share * value / 2))
            _, outside = sampler_weights(old, sampling, ones, correction)
            assert outside.tolist() == [[dropped, dropped]]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    scheme=st.sampled_from(
        [("token", "clip"), ("token", "mask"), ("seq", "mask"), ("seq-product", "clip"), ("seq-product", "mask")]
    ),
    low=st.sampled_from([0.0, 0.5, 0.9]),
    high=st.sampled_from([1.1, 2.0]),
    shift=st.permutations(range(6)),
)
def test_weights_equal_the_loop_in_any_order(seed, lengths, scheme, low, high, shift) -> None:
    rng = np.random.default_rng(seed)
    old = [rng.normal(size=length).tolist() for length in lengths]
    sampling = [(np.array(row) + 0.5 * rng.normal(size=len(row))).tolist() for row in old]
    order = [row for row in shift if row < len(lengths)]
    correction = SamplerCorrection(*scheme, "ratio", (low, high))
    weight, outside = sampler_weights(*_tensors([old[i] for i in order], [sampling[i] for i in order]), correction)
    expected = plain_losses.sampler_weights(old, sampling, *scheme, low, high)
    plain = plain_losses.sampler_weights(old, sampling, scheme[0], scheme[1], 0.0, 1e30)
    for position, row in enumerate(order):
        count = lengths[row]
        np.testing.assert_allclose(weight[position, :count], expected[row], rtol=1e-9)
        assert (weight[position, count:] == 0).all()
        # A token counts as touched where its weight is not what it would be without bounds.
        touched = [not math.isclose(a, b, rel_tol=1e-9) for a, b in zip(expected[row], plain[row], strict=True)]
        assert outside[position, :count].tolist() == touched


def _tensors(old: list[list[float]], sampling: list[list[float]]) -> tuple[Tensor, Tensor, Tensor]:
    width = max([1, *map(len, old)])
    mask = torch.zeros(len(old), width, dtype=torch.float64)
    padded = [torch.zeros(len(old), width, dtype=torch.float64) for _ in range(2)]
    for row, length in enumerate(map(len, old)):
        mask[row, :length] = 1
        for columns, values in zip(padded, (old, sampling), strict=True):
            columns[row, :length] = torch.tensor(values[row], dtype=torch.float64)
    return padded[0], padded[1], mask


@pytest.mark.skipif(not CASES, reason="the recorded cases lie beside the checkout")
@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case['case']}-{case['tag']}") for case in CASES])
def test_recorded_weights(case: dict[str, Any]) -> None:
    params, rows, expected = case["params"], case["rows"], case["expected"]
    both, upper = (params["is_low"], params["is_high"]), (0.0, params["seq_high"])
    schemes = {
        "is.tis": SamplerCorrection("token", "clip", "ratio", both),
        "is.icepop": SamplerCorrection("token", "mask", "ratio", both),
        "is.seq_mask_tis": SamplerCorrection("seq", "mask", "ratio", both),
        "is.seq_tis": SamplerCorrection("seq-product", "clip", "ratio", upper),
        "is.seq_mis": SamplerCorrection("seq-product", "mask", "ratio", upper),
    }
    for order in (range(len(rows["group"])), np.random.default_rng(3).permutation(len(rows["group"]))):
        old, sampling, mask = _tensors(*([rows[name][i] for i in order] for name in ("old_logp", "rollout_logp")))
        for key, correction in schemes.items():
            weight, _ = sampler_weights(old, sampling, mask, correction)
            for position, row in enumerate(order):
                given = weight[position, : len(expected[key][row])]
                np.testing.assert_allclose(given, expected[key][row], rtol=1e-9, atol=1e-7, err_msg=key)


def _batch(seed: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(6, 5, generator=generator, dtype=torch.float64) - 2
    return {
        "log_probs": old + 0.3 * torch.randn(6, 5, generator=generator, dtype=torch.float64),
        "old": old,
        "sampling": old + 0.8 * torch.randn(6, 5, generator=generator, dtype=torch.float64),
        "advantages": torch.randn(6, generator=generator, dtype=torch.float64),
        "mask": (torch.arange(5) < torch.tensor([5, 1, 3, 0, 4, 2])[:, None]).long(),
    }


def _loss(batch: dict[str, Tensor], name: str, correction: SamplerCorrection | None, **options: object) -> Any:
    given = actions(batch["old"], batch["advantages"], batch["mask"], sampling=batch["sampling"])
    chosen = objective(name, correction=correction, **options)
    return step_loss(batch["log_probs"], None, given, LossScale(6, 15), chosen)


@pytest.mark.parametrize("name", losses.names())
def test_a_sampler_that_agrees_changes_no_bit(name: str) -> None:
    batch = _batch() | {"sampling": _batch()["old"]}
    plain, _ = _loss(batch, name, None)
    for correction in (TIS, ICEPOP, SamplerCorrection("seq-product", "mask", "ratio", (0.0, 2.0))):
        assert torch.equal(_loss(batch, name, correction)[0], plain)


@pytest.mark.parametrize("name", losses.names())
@pytest.mark.parametrize("correction", [TIS, ICEPOP], ids=["tis", "icepop"])
def test_weights_are_constants_in_the_gradient(name: str, correction: SamplerCorrection) -> None:
    batch = _batch()
    log_probs = batch["log_probs"].requires_grad_()
    constant = {key: value.requires_grad_() for key, value in batch.items() if key in ("old", "sampling")}
    loss, _ = _loss(batch, name, correction)
    slopes = torch.autograd.grad(loss, [log_probs, *constant.values()], allow_unused=True)
    weight, _ = sampler_weights(batch["old"], batch["sampling"], batch["mask"].double(), correction)
    if losses.get(name).correction is losses.Correction.WEIGHTS:
        unweighted = torch.autograd.grad(_loss(batch, name, None)[0], log_probs)[0]
        torch.testing.assert_close(slopes[0], weight * unweighted)
    else:
        other = batch | {"old": batch["sampling"]}
        expected = _loss(other, name, None)[0]
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(slopes[0], torch.autograd.grad(expected, log_probs)[0])


@pytest.mark.parametrize("name", losses.names())
@pytest.mark.parametrize("correction", [TIS, ICEPOP, SamplerCorrection("seq", "mask", "tv", (0.0, 0.1))])
def test_corrected_micro_batches_add_up(name: str, correction: SamplerCorrection) -> None:
    batch = _batch()
    whole, sums = _loss(batch, name, correction)
    merged: dict[str, float] = {}
    for cut in (slice(0, 2), slice(2, 3), slice(3, 6)):
        merge_sums(merged, _loss({key: column[cut] for key, column in batch.items()}, name, correction)[1])
    assert merged["loss"] == pytest.approx(whole.item())
    assert merged == pytest.approx({key: float(value) for key, value in sums.items()})


def test_what_a_correction_did_is_logged_and_only_then() -> None:
    batch = _batch()
    weight, outside = sampler_weights(batch["old"], batch["sampling"], batch["mask"].double(), ICEPOP)
    assert 0 < outside.sum() < 15
    metrics = finish_metrics(merge_sums({}, _loss(batch, "ppo", ICEPOP)[1]), 1)
    assert metrics["policy/correction_share"] == pytest.approx(outside.sum().item() / 15)
    assert metrics["policy/correction_weight_mean"] == pytest.approx(weight.sum().item() / 15)
    for name, correction in (("ppo", None), ("gspo", ICEPOP)):
        logged = finish_metrics(merge_sums({}, _loss(batch, name, correction)[1]), 1)
        assert not [key for key in logged if "correction" in key]
        # The difference itself is always there.
        assert logged["policy/sampling_logprob_diff_mean"] == metrics["policy/sampling_logprob_diff_mean"]
