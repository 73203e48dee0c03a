"""Our losses equal OpenRLHF's own, value and gradient."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings
from openrlhf_gagpo.training.corrections import SamplerCorrection
from openrlhf_gagpo.training.objective import LossScale, finish_metrics, kl_estimate, merge_sums, step_loss
from support.objectives import actions, objective

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def openrlhf() -> ModuleType:
    # Importing this package first is what lets OpenRLHF be imported on a machine without a GPU.
    import openrlhf_gagpo.backends.distributed  # noqa: F401

    models = pytest.importorskip("openrlhf.models")
    models.utils = pytest.importorskip("openrlhf.models.utils")
    return models


def _tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    old = torch.randn(9, 7, generator=generator) - 2
    new = (old + 0.6 * torch.randn(9, 7, generator=generator)).requires_grad_()
    advantages = torch.randn(9, generator=generator)
    lengths = torch.tensor([7, 1, 3, 4, 7, 2, 5, 6, 0])
    return new, old, advantages, (torch.arange(7) < lengths[:, None]).long()


@pytest.mark.parametrize("dual", [None, 1.5])
@pytest.mark.parametrize(
    ("kind", "mode"), [("gspo", "token-mean"), ("ppo", "token-mean"), ("ppo", "seq-mean-token-mean")]
)
def test_policy_loss(openrlhf: ModuleType, kind: str, mode: str, dual: float | None) -> None:
    new, old, advantages, mask = _tensors()
    theirs = openrlhf.PolicyLoss(
        clip_eps_low=0.15,
        clip_eps_high=0.25,
        dual_clip=dual,
        token_level_loss=mode == "token-mean",
        policy_loss_type=kind,
    )
    mode_option = {"loss_agg_mode": mode} if kind == "ppo" else {}
    ours = objective(kind, eps_clip_low_high=(0.15, 0.25), dual_clip=dual, **mode_option)
    # The totals of a larger mini-batch of which these rows are one micro-batch.
    expected, clip_share, approx_kl, *_ = theirs(
        new, old, advantages[:, None].expand_as(new), action_mask=mask, batch_num_tokens=80, global_batch_size=19
    )
    loss, sums = step_loss(new, None, actions(old, advantages, mask), LossScale(19, 80), ours)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, new)[0], torch.autograd.grad(expected, new)[0])
    metrics = finish_metrics(merge_sums({}, sums), 1)
    assert metrics["policy/approx_kl"] == pytest.approx(approx_kl.item(), rel=1e-5)
    if kind == "ppo":
        assert metrics["policy/clip_share"] == pytest.approx(clip_share.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["ppo", "gspo"])
@pytest.mark.parametrize(
    ("level", "mode", "gating", "threshold"),
    [
        ("token", "clip", "ratio", (0.8, 1.3)),
        ("token", "mask", "ratio", (0.8, 1.3)),
        ("token", "mask", "ratio", (0.0, 1.3)),
        ("seq", "mask", "ratio", (0.9, 1.1)),
        ("token", "mask", "binary_kl", (0.0, 0.005)),
        ("token", "mask", "tv", (0.0, 0.03)),
        ("seq", "mask", "binary_kl", (0.0, 0.005)),
        ("seq", "mask", "tv", (0.0, 0.03)),
    ],
)
def test_sampler_corrections(
    openrlhf: ModuleType, kind: str, level: str, mode: str, gating: str, threshold: tuple[float, float]
) -> None:
    new, old, advantages, mask = _tensors()
    # Their mean over the tokens of a row without any is not a number.
    new, old, advantages, mask = new.detach()[:8].requires_grad_(), old[:8], advantages[:8], mask[:8]
    sampling = old + 0.3 * torch.randn(8, 7, generator=torch.Generator().manual_seed(5))
    correction = SamplerCorrection(level, mode, gating, threshold)
    theirs = openrlhf.PolicyLoss(
        policy_loss_type=kind,
        **{f"is_correction_{name}": value for name, value in vars(correction).items()},
    )
    expected, _, _, _, filtered = theirs(
        new,
        old,
        advantages[:, None].expand_as(new),
        action_mask=mask,
        rollout_log_probs=sampling,
        batch_num_tokens=80,
        global_batch_size=19,
    )
    given = actions(old, advantages, mask, sampling=sampling)
    loss, sums = step_loss(new, None, given, LossScale(19, 80), objective(kind, correction=correction))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, new)[0], torch.autograd.grad(expected, new)[0])
    if kind == "ppo" and level == "token":
        share = finish_metrics(merge_sums({}, sums), 1)["policy/correction_share"]
        assert share == pytest.approx(filtered.item())
        assert 0 < share < 1


def test_openrlhfs_workers_accept_a_correction_that_is_ours(openrlhf: ModuleType, tmp_path: Path) -> None:
    """They build a loss of their own from the same arguments, although it is never called."""
    from openrlhf_gagpo.backends.distributed.backend import DistributedBackend

    words = ["--env.name", "vault", "--actor.policy_loss_type", "cispo", "--run_dir", str(tmp_path / "run")]
    flag = "--algo.advantage.is_correction"
    config = resolve([*words, f"{flag}_level", "seq-product", f"{flag}_mode", "clip", f"{flag}_threshold", "2"])
    backend = DistributedBackend(backend_settings(config), config.namespace())
    chosen = vars(backend.args.algo.advantage)
    openrlhf.PolicyLoss(**{name: value for name, value in chosen.items() if name.startswith("is_correction")})
    # What the workers use instead.
    assert backend.args.gagpo_objective.correction == SamplerCorrection("seq-product", "clip", "ratio", (0.0, 2.0))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl(openrlhf: ModuleType, estimator: str) -> None:
    new, old, _, mask = _tensors()
    new = (new * 3).detach().requires_grad_()
    ours = kl_estimate(new, old, estimator)
    theirs = openrlhf.utils.compute_approx_kl(new, old, kl_estimator=estimator)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    expected = openrlhf.aggregate_loss(theirs, mask, batch_num_tokens=80)
    chosen = objective("gspo", kl_coef=0.3, kl_estimator=estimator)
    given = actions(new.detach(), torch.zeros(9), mask, reference=old)
    loss, _ = step_loss(new, None, given, LossScale(19, 80), chosen)
    torch.testing.assert_close(loss, 0.3 * expected)
    ours, theirs = (torch.autograd.grad(value, new)[0] for value in (loss, 0.3 * expected))
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)
