"""GAE with a learned critic, as in PPO (Schulman et al., arXiv 1506.02438 and 1707.06347), at one of three levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, option
from openrlhf_gagpo.credit.penalty import step_penalty
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, kept_rows, step_returns
from openrlhf_gagpo.credit.sets import Floats
from openrlhf_gagpo.credit.statistics import whitened
from openrlhf_gagpo.options import declare

__all__ = ["GaeOptions", "gae"]

PRESETS: Mapping[str, object] = {**BASELINE_PRESETS, "critic.lr_scheduler": "constant", "critic.lr_warmup_ratio": 0.0}


@dataclass(frozen=True)
class GaeOptions(EstimatorOptions):
    """Options of PPO's advantage."""

    gamma: float = option("gamma", 0.95)
    lambd: float = option("lambd", 0.95)
    gae_level: str = declare(
        "turn",
        "what TD residuals belong to: turn = environment steps; bilevel = environment steps, then the tokens inside "
        "each; token = the tokens of each response, whose last one earns the episode's score",
        choices=("turn", "bilevel", "token"),
    )
    token_gamma: float = declare(1.0, "discount per token inside a response (bilevel and token)", range=(0.0, 1.0))
    whiten: bool = declare(True, "whiten the advantages over all trained tokens of the batch")
    invalid_penalty_mode: str = option("invalid_penalty_mode", "reward")

    @property
    def token_advantages(self) -> bool:
        return self.gae_level != "turn"


@register("gae", GaeOptions, PRESETS, needs={"value"}, group_min=1)
def gae(batch: StepBatch, options: GaeOptions) -> CreditResult:
    """Compute ``delta_t = r_t + gamma V(s_{t+1}) - V(s_t)`` and ``A_t = delta_t + gamma lambda A_{t+1}``.

    V is 0 after the last step, truncated or terminated. The critic's target is ``A_t + V(s_t)``, before whitening.
    """
    levels = {"turn": _by_turn, "bilevel": _by_turn_and_token, "token": _by_token}
    return levels[options.gae_level](batch, options)


def _by_turn(batch: StepBatch, options: GaeOptions) -> CreditResult:
    """Take environment steps as the steps of GAE, with the critic's value at the end of each prompt."""
    value = batch.required("value")
    residual, advantage = _over_turns(batch, options, value)
    trained = np.where(kept_rows(batch, options), batch.n_tokens, 0)
    return CreditResult.of(
        batch,
        options,
        advantage=whitened(advantage, trained) if options.whiten else advantage,
        return_=step_returns(batch, options, options.gamma),
        value=value,
        td_residual=residual,
        value_target=advantage + value,
    )


def _by_turn_and_token(batch: StepBatch, options: GaeOptions) -> CreditResult:
    """Take steps first, with the value at each response's last token; then tokens, the last of which earns the target.

    Bi-level GAE (Wang et al., RAGEN, 2025). A response's tokens end with it: no value follows the last one.
    """
    before_last = np.zeros(len(batch))
    tokens = batch.tokens
    filled = tokens.count > 0
    before_last[filled] = batch.required("token_value")[tokens.is_last]
    residual, advantage = _over_turns(batch, options, before_last)
    reward = np.zeros(len(tokens.label))
    reward[tokens.is_last] = (advantage + before_last)[filled]
    return _over_tokens(batch, options, reward, step_returns(batch, options, options.gamma), residual)


def _by_token(batch: StepBatch, options: GaeOptions) -> CreditResult:
    """Take every response as an episode of its own, whose last token earns the score of the whole episode."""
    tokens, score = batch.tokens, episode_scores(batch, options)
    reward = np.zeros(len(tokens.label))
    reward[tokens.is_last] = score[tokens.count > 0]
    return _over_tokens(batch, options, reward, score, None)


def _over_turns(batch: StepBatch, options: GaeOptions, value: Floats) -> tuple[Floats, Floats]:
    """Return the TD residual and the advantage of every step."""
    reward = batch.reward - step_penalty(batch, options)
    residual = reward + options.gamma * batch.trajectories.following(value) - value
    return residual, batch.trajectories.backward_sum(residual, options.gamma * options.lambd)


def _over_tokens(
    batch: StepBatch, options: GaeOptions, reward: Floats, return_: Floats, residual: Floats | None
) -> CreditResult:
    """Compute GAE inside every response from a reward per token; a step's own advantage is the mean of its tokens'."""
    tokens, value = batch.tokens, batch.required("token_value")
    delta = reward + options.token_gamma * tokens.following(value) - value
    raw = tokens.backward_sum(delta, options.token_gamma * options.lambd)
    trained = tokens.expand(kept_rows(batch, options)).astype(np.int64)
    advantage = whitened(raw, trained) if options.whiten else raw
    return CreditResult.of(
        batch,
        options,
        advantage=tokens.mean(advantage),
        return_=return_,
        value=batch.required("value"),
        td_residual=residual,
        token_advantage=advantage,
        token_value_target=raw + value,
    )
