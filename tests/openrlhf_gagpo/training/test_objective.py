"""Losses by hand, their gradients, and that a mini-batch may be cut anywhere."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openrlhf_gagpo.losses.surrogate import ClipOptions, clipped_surrogate
from openrlhf_gagpo.training.corrections import SamplerCorrection
from openrlhf_gagpo.training.objective import (
    LossScale,
    Objective,
    add_sums,
    finish_metrics,
    kl_estimate,
    merge_sums,
    read_sums,
    step_loss,
)
from support.objectives import actions, objective

OBJECTIVES = {
    "action": objective("gspo", kl_coef=0.05, entropy_coef=0.02),
    "action dual": objective("gspo", kl_coef=0.05, entropy_coef=0.02, dual_clip=3.0),
    "token": objective("ppo", kl_coef=0.05, entropy_coef=0.02, kl_estimator="k2"),
    "token rows": objective(
        "ppo", kl_coef=0.05, entropy_coef=0.02, kl_estimator="k1", loss_agg_mode="seq-mean-token-mean"
    ),
    "token constant": objective(
        "ppo", kl_coef=0.05, entropy_coef=0.02, loss_agg_mode="seq-mean-token-sum-norm", response_limit=6
    ),
}


@pytest.mark.parametrize(
    ("estimator", "value", "slope"),
    [
        ("k1", lambda d: d, lambda d: 1.0),
        ("k2", lambda d: d * d / 2, lambda d: d),
        ("k3", lambda d: math.exp(-d) - 1 + d, lambda d: 1 - math.exp(-d)),
    ],
)
def test_kl_estimates_by_hand(estimator, value, slope) -> None:
    differences = [-1.5, -1e-3, 0.0, 0.4, 2.0]
    log_probs = torch.tensor([differences], requires_grad=True)
    result = kl_estimate(log_probs, torch.zeros(1, 5), estimator)
    torch.testing.assert_close(result, torch.tensor([[value(d) for d in differences]]))
    (gradient,) = torch.autograd.grad(result.sum(), log_probs)
    torch.testing.assert_close(gradient, torch.tensor([[slope(d) for d in differences]]))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_bounded_and_its_gradient_finite(estimator: str) -> None:
    log_probs = torch.tensor([[-300.0, -20.0, 20.0, 300.0]], requires_grad=True)
    value = kl_estimate(log_probs, torch.zeros(1, 4), estimator)
    assert value.abs().max() <= 10
    value.sum().backward()
    assert log_probs.grad.isfinite().all()


def test_an_unknown_kl_estimator_is_named() -> None:
    with pytest.raises(ValueError, match="'k4'; choose one of k1, k2, k3"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), "k4")


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "objective", "bound"),
    [
        (1.1, 2.0, None, 2.2, False),
        (1.5, 2.0, None, 2.4, True),  # clipped at 1.2
        (0.5, 2.0, None, 1.0, False),  # pessimistic: no clip from below for good actions
        (0.5, -1.0, None, -0.7, True),  # clipped at 0.7
        (1.5, -1.0, None, -1.5, False),
        (5.0, -1.0, None, -5.0, False),
        (5.0, -1.0, 3.0, -3.0, False),  # dual clip bounds what one bad action can cost
        (2.0, -1.0, 3.0, -2.0, False),
        (5.0, 1.0, 3.0, 1.2, True),  # and leaves good actions alone
    ],
)
def test_clipped_objective_by_hand(ratio, advantage, dual, objective, bound) -> None:
    options = ClipOptions(eps_clip_low_high=(0.3, 0.2), dual_clip=dual)
    value, binds = clipped_surrogate(torch.tensor([ratio]), torch.tensor([advantage]), options, torch.ones(1))
    assert value.item() == pytest.approx(objective)
    assert bool(binds) is bound


def test_the_clip_scale_widens_and_narrows_both_bounds() -> None:
    options, ratio = ClipOptions(eps_clip_low_high=(0.3, 0.2)), torch.tensor([1.3, 1.3, 0.5])
    advantage, scale = torch.tensor([1.0, 1.0, -1.0]), torch.tensor([0.5, 2.0, 0.5])
    value, _ = clipped_surrogate(ratio, advantage, options, scale)
    torch.testing.assert_close(value, torch.tensor([1.1, 1.3, -0.85]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_clip_scale_of_one_changes_no_bit(name: str) -> None:
    batch = _batch(9, seed=2)
    scale = LossScale(9.0, int(batch["mask"].sum()))
    plain, _ = _loss(batch, scale, OBJECTIVES[name])
    scaled, _ = _loss(batch | {"clip_scale": torch.ones(9)}, scale, OBJECTIVES[name])
    assert torch.equal(plain, scaled)


def test_action_and_token_ratio_by_hand() -> None:
    old = torch.zeros(2, 3)
    new = torch.tensor([[0.3, 0.1, -0.1], [0.05, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    advantages = torch.tensor([1.0, -2.0])
    scale = LossScale(row_normalizer=4.0, token_normalizer=10)

    def loss(chosen: Objective, advantages: Tensor = advantages) -> float:
        return step_loss(new, None, actions(old, advantages, mask), scale, chosen)[0].item()

    # One ratio per action: the exponential of the mean log-ratio of its tokens.
    assert loss(objective("gspo")) == pytest.approx(-(math.exp(0.1) - 2 * math.exp(0.05)) / 4)
    good = 1.2 + math.exp(0.1) + math.exp(-0.1)
    assert loss(objective("ppo")) == pytest.approx(-(good - 2 * math.exp(0.05)) / 10)
    constant = objective("ppo", loss_agg_mode="seq-mean-token-sum-norm", response_limit=5)
    assert loss(constant) == pytest.approx(-(good - 2 * math.exp(0.05)) / (4 * 5))
    rows = objective("ppo", loss_agg_mode="seq-mean-token-mean")
    assert loss(rows) == pytest.approx(-(good / 3 - 2 * math.exp(0.05)) / 4)
    # One advantage per token.
    by_token = torch.tensor([[1.0, 0.0, -3.0], [-2.0, 0.0, 0.0]])
    good = 1.2 - 3 * math.exp(-0.1)
    assert loss(objective("ppo"), by_token) == pytest.approx(-(good - 2 * math.exp(0.05)) / 10)


def test_kl_and_entropy_terms_are_token_means() -> None:
    zeros, mask = torch.zeros(2, 2), torch.tensor([[1, 1], [1, 0]])
    entropy = torch.tensor([[0.5, 0.25], [1.0, 99.0]])
    chosen = objective("gspo", kl_coef=0.1, kl_estimator="k2", entropy_coef=0.01)
    given = actions(zeros, torch.zeros(2), mask, reference=zeros - 1.0)
    loss, sums = step_loss(zeros, entropy, given, LossScale(2, 3), chosen)
    assert loss.item() == pytest.approx(0.1 * 0.5 - 0.01 * 1.75 / 3)
    # What is logged as the loss is what is minimised.
    assert sums["loss"].item() == loss.item()
    assert sums["policy_loss"].item() == 0.0


# This loss is no function of which its gradient is the derivative, so that finite differences do not show it.
ADDITIVE = OBJECTIVES | {"weight": objective("cispo", kl_coef=0.05, entropy_coef=0.02)}


@pytest.mark.parametrize("chosen", [replace(o, kl_coef=0.0) for o in OBJECTIVES.values()], ids=OBJECTIVES)
def test_gradients_by_finite_differences(chosen: Objective) -> None:
    generator = torch.Generator().manual_seed(3)
    draw = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    old, mask = draw - 2.0, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
    new = (old + 0.5 * torch.randn(5, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    entropy = torch.rand(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    advantages = torch.tensor([1.0, -2.0, 3.0, 0.5, -0.7], dtype=torch.float64)

    def loss(new: Tensor, entropy: Tensor) -> Tensor:
        return step_loss(new, entropy, actions(old, advantages, mask), LossScale(4, 10), chosen)[0]

    assert torch.autograd.gradcheck(loss, (new, entropy))


def _batch(rows: int, seed: int) -> dict[str, Tensor]:
    """Random rows; every fourth has no response token at all."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    old = draw(rows, 6) - 2
    lengths = torch.randint(1, 7, (rows,), generator=generator)
    lengths[3::4] = 0
    return {
        "log_probs": old + 0.4 * draw(rows, 6),
        "old": old,
        "reference": old + 0.2 * draw(rows, 6),
        "sampling": old + 0.01 * draw(rows, 6),
        "advantages": draw(rows),
        "mask": (torch.arange(6) < lengths[:, None]).long(),
        "entropy": draw(rows, 6).abs(),
    }


def _loss(batch: dict[str, Tensor], scale: LossScale, chosen: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    given = actions(
        batch["old"],
        batch["advantages"],
        batch["mask"],
        reference=batch["reference"],
        sampling=batch["sampling"],
        clip_scale=batch.get("clip_scale"),
    )
    return step_loss(batch["log_probs"], batch["entropy"], given, scale, chosen)


@pytest.mark.parametrize("chosen", ADDITIVE.values(), ids=ADDITIVE)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 14), seed=st.integers(0, 99), cuts=st.sets(st.integers(1, 13)))
def test_micro_batches_add_up_to_the_mini_batch(chosen, rows, seed, cuts) -> None:
    batch = _batch(rows, seed)
    scale = LossScale(rows * 0.9, max(int(batch["mask"].sum()), 1))
    batch["log_probs"].requires_grad_()
    whole, sums = _loss(batch, scale, chosen)
    (gradient,) = torch.autograd.grad(whole, batch["log_probs"])

    edges = [0, *sorted(cut for cut in cuts if cut < rows), rows]
    losses, merged, on_device = [], {}, {}
    for first, last in pairwise(edges):
        loss, part = _loss({name: column[first:last] for name, column in batch.items()}, scale, chosen)
        losses.append(loss)
        merge_sums(merged, part)
        add_sums(on_device, part)
    assert read_sums(on_device) == merged
    total = torch.stack(losses).sum()
    torch.testing.assert_close(total, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(total, batch["log_probs"])[0], gradient, atol=1e-7, rtol=1e-5)
    assert merged == pytest.approx({name: float(value) for name, value in sums.items()}, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("chosen", ADDITIVE.values(), ids=ADDITIVE)
def test_empty_rows_contribute_exactly_nothing(chosen: Objective) -> None:
    batch = _batch(12, seed=5)
    real = batch["mask"].sum(-1) > 0
    scale = LossScale(9.0, int(batch["mask"].sum()))
    batch["log_probs"].requires_grad_()
    loss, sums = _loss(batch, scale, chosen)
    without, fewer = _loss({name: column[real] for name, column in batch.items()}, scale, chosen)
    assert loss.item() == pytest.approx(without.item(), abs=1e-7)
    assert sums["rows"] == fewer["rows"] == real.sum()
    (gradient,) = torch.autograd.grad(loss, batch["log_probs"])
    assert (gradient[batch["mask"] == 0] == 0).all()
    assert (gradient[real] != 0).any(-1).all()

    empty = {name: column[~real].detach().requires_grad_(name == "log_probs") for name, column in batch.items()}
    nothing, sums = _loss(empty, scale, chosen)
    assert nothing.item() == 0
    assert all(float(value) == 0 for value in sums.values())
    assert (torch.autograd.grad(nothing, empty["log_probs"])[0] == 0).all()


CORRECTED = objective("ppo", correction=SamplerCorrection("seq", "mask", "binary_kl", (0.0, 0.1)))


@pytest.mark.parametrize("chosen", [*ADDITIVE.values(), CORRECTED], ids=[*ADDITIVE, "corrected"])
def test_a_micro_batch_reads_nothing_from_the_device(chosen: Objective) -> None:
    """Tensors of this device have no numbers, so that whatever reads one fails, as what ends a step does."""
    batch = {name: column.to("meta") for name, column in _batch(8, seed=1).items()}
    total: dict[str, Tensor] = {}
    for _ in range(2):
        batch["log_probs"] = batch["log_probs"].detach().requires_grad_()
        loss, sums = _loss(batch | {"clip_scale": batch["advantages"]}, LossScale(8, 20), chosen)
        loss.backward()
        add_sums(total, sums)
    assert {value.device.type for value in total.values()} == {"meta"}
    with pytest.raises(NotImplementedError):
        read_sums(total)


def test_sums_become_metrics() -> None:
    mask = torch.tensor([[1, 1], [1, 0]])
    old = torch.full((2, 2), -1.0)
    new = old + torch.tensor([[0.4, 0.4], [0.1, 5.0]])
    sampling = old + torch.tensor([[0.0, 0.3], [-0.6, 7.0]])
    total: dict[str, float] = {}
    for row in range(2):
        cut = slice(row, row + 1)
        given = actions(old[cut], torch.ones(2)[cut], mask[cut], reference=old[cut], sampling=sampling[cut])
        _, sums = step_loss(
            new[cut], new[cut].abs(), given, LossScale(2, 3), objective("gspo", kl_coef=0.01, kl_estimator="k1")
        )
        merge_sums(total, sums)
    metrics = finish_metrics(total, 1)
    assert metrics == pytest.approx(
        {
            "policy/loss": -(1.2 + math.exp(0.1)) / 2 + 0.01 * 0.3,
            "policy/policy_loss": -(1.2 + math.exp(0.1)) / 2,
            "policy/clip_share": 0.5,
            "policy/ratio_mean": (math.exp(0.4) + math.exp(0.1)) / 2,
            "policy/approx_kl": -0.3,
            "policy/optimizer_steps": 1,
            "policy/rows_trained": 2,
            "policy/tokens_trained": 3,
            "policy/kl_ref": 0.3,
            "policy/entropy": (0.6 + 0.6 + 0.9) / 3,
            "policy/sampling_logprob_diff_mean": 0.3,
            "policy/sampling_logprob_diff_max": 0.6,
        }
    )


def test_metrics_of_an_iteration_without_rows() -> None:
    assert set(finish_metrics({}, 0).values()) == {0.0}
