"""REINFORCE++: the return of each step, whitened over all trained tokens of the batch, without a group baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, option
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import kept_rows, step_returns
from openrlhf_gagpo.credit.sets import Sets
from openrlhf_gagpo.credit.statistics import centred, statistics_of

__all__ = ["ReinforceOptions", "reinforce"]

VARIANCE_FLOOR = 1e-8


@dataclass(frozen=True)
class ReinforceOptions(EstimatorOptions):
    """Options of REINFORCE++ over environment steps."""

    gamma: float = option("gamma", 1.0)


@register("reinforce", ReinforceOptions, BASELINE_PRESETS, group_min=1)
def reinforce(batch: StepBatch, options: ReinforceOptions) -> CreditResult:
    """Compute ``(R_t - mean) / std`` with both over the batch's trained tokens (Hu et al., arXiv 2501.03262).

    The deviation is that of a population, at least 1e-4. All advantages are 0 if the returns do not differ, or if no
    token is trained.
    """
    returns = step_returns(batch, options, options.gamma)
    tokens = np.repeat(returns, np.where(kept_rows(batch, options), batch.n_tokens, 0))
    statistics = statistics_of(tokens, Sets.whole(len(tokens)), ddof=0)
    if len(tokens) == 0 or statistics.noise[0] > 0.0:
        advantage = np.zeros(len(batch))
    else:
        std = max(statistics.std[0], np.sqrt(VARIANCE_FLOOR))
        advantage = centred(returns, Sets.whole(len(batch)), statistics) / std
    return CreditResult.of(
        batch, options, advantage=advantage, return_=returns, value=np.full(len(batch), statistics.mean[0])
    )
