"""A policy loss as a plugin: the plain policy gradient, with a bound on how far a token may have moved.

gagpo train --algo.plugin examples/plugins/plain_gradient.py --actor.policy_loss_type plain_gradient ...
"""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo.losses import LossBatch, LossOptions, LossResult, register
from openrlhf_gagpo.options import declare


@dataclass(frozen=True)
class PlainGradientOptions(LossOptions):
    """The option ``max_log_ratio`` is the flag ``--actor.max_log_ratio``."""

    max_log_ratio: float = declare(
        2.0, "tokens whose log-probability moved further than this do not count", range=(0.0, 20.0)
    )


@register("plain_gradient", PlainGradientOptions, token_advantages=True)
def plain_gradient(batch: LossBatch, options: PlainGradientOptions) -> LossResult:
    """Compute ``- advantage * log p`` per token, averaged over the tokens of the optimizer step."""
    log_ratio = ((batch.log_probs - batch.old_log_probs) * batch.mask).detach()
    far = log_ratio.abs() > options.max_log_ratio
    objective = batch.advantage * batch.log_probs * ~far
    loss = -(objective * batch.mask).sum() / batch.tokens_per_step
    return LossResult(loss, log_ratio.exp(), far, batch.mask)
