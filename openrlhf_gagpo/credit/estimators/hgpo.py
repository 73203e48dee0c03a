"""HGPO: the return of a step among steps that share the state, the last two states, and so on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, LoneStates, option
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, score_entries, step_returns
from openrlhf_gagpo.credit.sets import Floats, Ints, Sets
from openrlhf_gagpo.credit.statistics import centred, standardised, statistics_of
from openrlhf_gagpo.options import declare

__all__ = ["HgpoOptions", "hgpo"]

ZERO = 1e-12
"""A comparison up to this size counts as none."""
EPSILON = 1e-6
"""Added to the sum of the weights."""


@dataclass(frozen=True)
class HgpoOptions(EstimatorOptions):
    """Options of HGPO; the defaults are those of its released code."""

    gamma: float = option("gamma", 0.95)
    gigpo_mode: str = option("gigpo_mode", "mean_std_norm")
    hgpo_history: int = declare(
        2, "earlier states that two steps may have in common, next to their own", range=(0, float("inf"))
    )
    hgpo_length_alpha: float = declare(
        1.0, "power of the weight of a longer common history; 0 weighs all alike", range=(0.0, 100.0)
    )
    hgpo_base: bool = declare(False, "also compare the episode's score with the group, with the smallest weight")

    @property
    def lone_states(self) -> LoneStates | None:
        if self.hgpo_base:
            return LoneStates("the episode's advantage")
        return LoneStates("", "--algo.advantage.hgpo_base")


@register("hgpo", HgpoOptions, BASELINE_PRESETS)
def hgpo(batch: StepBatch, options: HgpoOptions) -> CreditResult:
    """Compute ``sum_k w_k a_k`` over comparisons of ever more similar steps.

    a_k compares R_t with the steps of the group whose last k states are the same, for k from 1 to the history plus 1;
    a_0, with ``hgpo_base``, compares the episode's score with the group. w_k is ``(k + 1)^alpha`` divided by the sum
    over the comparisons of the step that are not 0. A step without any has advantage 0.
    """
    compare = standardised if options.gigpo_mode == "mean_std_norm" else centred
    returns = step_returns(batch, options, options.gamma)
    weighted, weights = np.zeros(len(batch)), np.zeros(len(batch))

    def add(k: int, rows: Ints | slice, comparison: Floats) -> None:
        weight = np.where(np.abs(comparison) > ZERO, (k + 1.0) ** options.hgpo_length_alpha, 0.0)
        weighted[rows] += weight * comparison
        weights[rows] += weight

    if options.hgpo_base:
        scores = episode_scores(batch, options)
        add(0, slice(None), compare(scores, batch.groups, statistics_of(*score_entries(batch, scores, options))))
    for k, (rows, cells) in enumerate(_common_histories(batch, options.hgpo_history + 1), start=1):
        add(k, rows, compare(returns[rows], cells, statistics_of(returns[rows], cells, ddof=0)))
    return CreditResult.of(
        batch,
        options,
        advantage=weighted / (weights + EPSILON),
        return_=returns,
        value=batch.states.expand(batch.states.mean(returns)),
    )


def _common_histories(batch: StepBatch, longest: int) -> Iterator[tuple[Ints, Sets]]:
    """Return for k = 1, 2, ... the rows with k states so far, and the sets of those whose last k states are the same.

    The last k + 1 states of a step are the last k of the step before and its own state.
    """
    rows, label = np.arange(len(batch)), batch.states.label
    for k in range(1, longest + 1):
        distinct, number = np.unique(label, return_inverse=True)
        yield rows, Sets.of_labels(number, len(distinct))
        numbers = np.empty(len(batch), dtype=np.int64)
        numbers[rows] = number
        rows = np.flatnonzero(batch.step >= k)
        if len(rows) == 0:
            return
        label = numbers[rows - 1] * len(batch.states.count) + batch.states.label[rows]
