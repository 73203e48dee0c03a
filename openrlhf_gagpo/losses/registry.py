"""The input and output of a policy loss, and the names of all losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from openrlhf_gagpo.errors import LossError
from openrlhf_gagpo.options import Options
from openrlhf_gagpo.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Correction",
    "Loss",
    "LossBatch",
    "LossOptions",
    "LossResult",
    "get",
    "names",
    "register",
    "restore",
    "snapshot",
]


class Correction(Enum):
    """What a loss does about a sampler whose log-probabilities differ from those of the training pass."""

    NONE = "none"
    """Nothing; runs that ask for a correction are refused."""
    WEIGHTS = "weights"
    """It multiplies each token's objective by ``LossBatch.weight``."""
    OLD_LOG_PROBS = "old log-probabilities"
    """Its ratio compares with the sampler, whose log-probabilities it gets as ``LossBatch.old_log_probs``."""


@dataclass(frozen=True)
class LossBatch:
    """One micro-batch of B actions, padded on the right to A positions.

    ``rows_per_step`` and ``tokens_per_step`` are totals of the whole optimizer step, over all its micro-batches and
    ranks. A loss divides by them and by nothing that depends on the micro-batch, so that the losses of a step's
    micro-batches add up to the loss of the mini-batch for any division into micro-batches.
    """

    log_probs: Tensor
    """(B, A) under the policy, with gradient, at the temperature of the rollout."""
    old_log_probs: Tensor
    """(B, A) under the policy before the iteration's first update (see ``Correction.OLD_LOG_PROBS``)."""
    advantage: Tensor
    """(B, 1) if the estimator gave one advantage per action, (B, A) if it gave one per token."""
    mask: Tensor
    """(B, A) float: 1 on response tokens, 0 on padding. A padding row is all 0."""
    clip_scale: Tensor
    """(B, 1) factor of both clip bounds; 1 unless the estimator set it."""
    rows_per_step: float
    """Mean number of rows of an optimizer step in this iteration, so that every row of it weighs the same."""
    tokens_per_step: int
    """Response tokens of this optimizer step; 1 if it has none."""
    response_limit: int
    """Response tokens that an action of this run may have at most."""
    weight: Tensor
    """(B, A) constant factor of each token's objective; 1 unless the run corrects for the sampler."""

    def per_action(self, values: Tensor) -> Tensor:
        """Average over the response tokens of each row, (B, A) -> (B, 1); 0 for a padding row."""
        return (values * self.mask).sum(-1, keepdim=True) / self.mask.sum(-1, keepdim=True).clamp(min=1)

    def real(self) -> Tensor:
        """(B, 1) float: 1 for a row with response tokens, 0 for a padding row."""
        return (self.mask.sum(-1, keepdim=True) > 0).to(self.mask.dtype)


@dataclass(frozen=True)
class LossResult:
    """A loss to minimise, and its importance ratios for the metrics."""

    loss: Tensor
    """Scalar."""
    ratio: Tensor
    """Importance ratios: (B, A), or (B, 1) for one ratio per action."""
    clipped: Tensor
    """Whether the clip determines the objective, in the shape of ``ratio``."""
    counted: Tensor
    """1 for entries that count in the metrics, 0 for padding, in the shape of ``ratio``."""


@dataclass(frozen=True)
class LossOptions(Options):
    """Base of a loss's options; a field ``x`` is the flag ``--actor.x``."""


@dataclass(frozen=True)
class Loss:
    """A registered policy loss."""

    name: str
    compute: Callable[[LossBatch, Any], LossResult]
    options_cls: type[LossOptions]
    token_advantages: bool
    """Whether the advantage may differ between the tokens of an action."""
    correction: Correction
    """What it does in a run that corrects for the sampler."""


_LOSSES: Registry[Loss] = Registry("policy loss", LossError)
get, names, snapshot, restore = _LOSSES.get, _LOSSES.names, _LOSSES.snapshot, _LOSSES.restore


def register(
    name: str,
    options_cls: type[LossOptions],
    *,
    token_advantages: bool,
    correction: Correction = Correction.NONE,
) -> Callable[[Callable[[LossBatch, Any], LossResult]], Callable[[LossBatch, Any], LossResult]]:
    """Make a pure function of a batch and its options available as ``name``; use it as a decorator.

    Raises:
        LossError: the name is taken.
    """

    def add(compute: Callable[[LossBatch, Any], LossResult]) -> Callable[[LossBatch, Any], LossResult]:
        _LOSSES.add(name, Loss(name, compute, options_cls, token_advantages, correction))
        return compute

    return add
