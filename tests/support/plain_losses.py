"""Losses and sampler corrections as loops over plain numbers, written after their definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["constant_length_loss", "sampler_weights", "weighted_gradient_loss"]

Rows = Sequence[Sequence[float]]


def weighted_gradient_loss(
    new: Rows, old: Rows, advantages: Sequence[float], low: float, high: float, weights: Rows | None = None
) -> tuple[float, list[list[float]]]:
    """CISPO, and its derivative by each token's log-probability."""
    tokens = sum(len(row) for row in new)
    loss, slopes = 0.0, []
    for row, (news, olds) in enumerate(zip(new, old, strict=True)):
        slopes.append([])
        for token, (now, before) in enumerate(zip(news, olds, strict=True)):
            ratio = min(max(math.exp(now - before), 1 - low), 1 + high)
            factor = ratio * advantages[row] * (1.0 if weights is None else weights[row][token])
            loss -= factor * now / tokens
            slopes[-1].append(-factor / tokens)
    return loss, slopes


def constant_length_loss(
    new: Rows,
    old: Rows,
    advantages: Sequence[float],
    low: float,
    high: float,
    limit: int,
    weights: Rows | None = None,
) -> tuple[float, list[list[float]]]:
    """PPO's surrogate, every row counted as ``limit`` tokens, and its derivative by each token's log-probability."""
    loss, slopes = 0.0, []
    for row, (news, olds) in enumerate(zip(new, old, strict=True)):
        slopes.append([])
        for token, (now, before) in enumerate(zip(news, olds, strict=True)):
            share = (1.0 if weights is None else weights[row][token]) / (len(new) * limit)
            ratio, advantage = math.exp(now - before), advantages[row]
            held = advantage * min(max(ratio, 1 - low), 1 + high)
            loss -= share * min(ratio * advantage, held)
            slopes[-1].append(-share * ratio * advantage if ratio * advantage <= held else 0.0)
    return loss, slopes


def sampler_weights(old: Rows, sampling: Rows, level: str, mode: str, low: float, high: float) -> list[list[float]]:
    """Weights of the tokens, with the ratio as the statistic."""
    weights = []
    for olds, samplings in zip(old, sampling, strict=True):
        gaps = [before - sampled for before, sampled in zip(olds, samplings, strict=True)]
        ratios = [math.exp(gap) for gap in gaps]
        statistics = list(ratios)
        if level == "seq" and gaps:
            statistics = [math.exp(sum(gaps) / len(gaps))] * len(gaps)
        if level == "seq-product":
            ratios = statistics = [math.exp(min(max(sum(gaps), -20.0), 20.0))] * len(gaps)
        if mode == "clip":
            weights.append([min(max(ratio, low), high) for ratio in ratios])
        else:
            kept = zip(ratios, statistics, strict=True)
            weights.append([ratio if low <= statistic <= high else 0.0 for ratio, statistic in kept])
    return weights
