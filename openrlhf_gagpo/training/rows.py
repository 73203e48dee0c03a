"""Training rows, and the plan of optimizer steps over them.

One row is one environment step with its final credit; this module does not change credit, drop rows or repeat them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MicroBatch",
    "OptimizerStep",
    "TokenRow",
    "TrainingRow",
    "plan_by_prompt",
    "plan_updates",
    "prompt_numbers",
    "unique_rows",
]


@dataclass(frozen=True)
class TokenRow:
    """The tokens of one action, exactly as sampled in the rollout."""

    prompt_ids: list[int]
    response_ids: list[int]
    sampling_log_probs: list[float]
    sampled_by: str = field(default="", compare=False, kw_only=True)
    """``rollout.types.Completion.sampled_by``."""

    @property
    def length(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class TrainingRow(TokenRow):
    """One action with its credit."""

    advantage: float
    trajectory: str = ""
    step: int = 0
    clip_scale: float = 1.0
    """Factor of both clip bounds."""
    token_advantages: NDArray[np.float64] | None = field(default=None, compare=False)
    """One per response token, used instead of ``advantage``."""
    value: float | None = None
    """Critic's estimate at the end of the prompt, before the iteration's first update."""
    token_values: NDArray[np.float64] | None = field(default=None, compare=False)
    """The same before every response token."""
    value_target: float | None = None
    """What a critic should predict at the end of the prompt."""
    token_value_targets: NDArray[np.float64] | None = field(default=None, compare=False)
    """One per response token, used instead of ``value_target``."""
    old_log_probs: NDArray[np.float64] | None = field(default=None, compare=False)
    """One per response token, if credit needed them; otherwise the update computes them."""


_Row = TypeVar("_Row", bound=TokenRow)


def unique_rows(rows: Sequence[_Row]) -> tuple[list[_Row], list[int]]:
    """Return the distinct rows by prompt and response, and for every given row the index of its equal among them.

    Equal rows have equal log-probabilities, so a model needs to compute only the distinct ones.
    """
    index: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    inverse = [index.setdefault((tuple(row.prompt_ids), tuple(row.response_ids)), len(index)) for row in rows]
    firsts: dict[int, _Row] = {}
    for row, position in zip(rows, inverse, strict=True):
        firsts.setdefault(position, row)
    return list(firsts.values()), inverse


def prompt_numbers(rows: Sequence[TokenRow]) -> list[int]:
    """Return one number per row that rows with the same prompt share."""
    index: dict[tuple[int, ...], int] = {}
    return [index.setdefault(tuple(row.prompt_ids), len(index)) for row in rows]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward and backward pass, plus ``padding`` rows without weight."""

    rows: tuple[int, ...]
    padding: int = 0


@dataclass(frozen=True)
class OptimizerStep:
    """One optimizer step: the rows of each data-parallel rank, and the totals by which its losses are divided."""

    shards: tuple[tuple[MicroBatch, ...], ...]
    """[rank][micro-batch]; every rank has the same number of micro-batches."""
    row_normalizer: float
    """Mean mini-batch size of the iteration (rows / steps), so that every row weighs the same."""
    token_normalizer: int
    """Response tokens of this mini-batch over all ranks."""

    @property
    def rows(self) -> list[int]:
        """All rows of the step, over all ranks."""
        return [row for shard in self.shards for micro in shard for row in micro.rows]


def plan_updates(
    lengths: Sequence[int],
    response_lengths: Sequence[int],
    *,
    mini_batch: int,
    micro_batch: int | None,
    max_tokens: int | None = None,
    ranks: int = 1,
    epochs: int = 1,
    seed: int = 0,
    together: Sequence[int] | None = None,
) -> list[OptimizerStep]:
    """Plan the optimizer steps of one iteration.

    Each epoch has ``ceil(N / mini_batch)`` steps over a seeded permutation of the rows, whose sizes differ by at most
    one. Each step is dealt to the ranks by length and cut into micro-batches; a rank that has fewer rows than another
    gets padding, never a copy.

    Args:
        lengths: (N,) tokens of prompt and response per row.
        response_lengths: (N,) response tokens per row.
        mini_batch: maximum rows per optimizer step.
        micro_batch: maximum rows per pass on one rank; None for as many as ``max_tokens`` allows.
        together: (N,) rows with the same number (of their prompt, say) stay together in the permutation, so that most
            of them share an optimizer step, in which a backend may compute once what they have in common.
        max_tokens: maximum padded tokens per pass on one rank (a single longer row still gets its pass).
    """
    count = len(lengths)
    if count == 0:
        return []
    if mini_batch < 1 or (micro_batch is not None and micro_batch < 1) or ranks < 1 or epochs < 1:
        raise ValueError("mini_batch, micro_batch, ranks and epochs must be at least 1")
    steps_per_epoch = math.ceil(count / mini_batch)
    rng = np.random.default_rng(seed)
    plan = []
    for _ in range(epochs):
        order = rng.permutation(count)
        if together is not None:
            place: dict[int, int] = {}
            first_seen = [place.setdefault(together[row], position) for position, row in enumerate(order)]
            order = order[np.argsort(first_seen, kind="stable")]
        for rows in np.array_split(order, steps_per_epoch):
            by_length = sorted((int(row) for row in rows), key=lambda row: (-lengths[row], row))
            shards = [_cut(by_length[rank::ranks], lengths, micro_batch, max_tokens) for rank in range(ranks)]
            passes = max(len(shard) for shard in shards)
            plan.append(
                OptimizerStep(
                    shards=tuple(tuple(shard + [MicroBatch((), 1)] * (passes - len(shard))) for shard in shards),
                    row_normalizer=count / steps_per_epoch,
                    token_normalizer=sum(response_lengths[row] for row in by_length),
                )
            )
    return plan


def plan_by_prompt(rows: Sequence[TokenRow], micro_batch: int | None, max_tokens: int | None) -> list[MicroBatch]:
    """Plan passes on one device over every row once, rows of one prompt side by side so that few passes read it.

    Args:
        micro_batch: maximum rows per pass; None for as many as ``max_tokens`` allows.
        max_tokens: maximum padded tokens per pass (a single longer row still gets its pass).
    """
    prompts = prompt_numbers(rows)
    longest: dict[int, int] = {}
    for prompt, row in zip(prompts, rows, strict=True):
        longest[prompt] = max(longest.get(prompt, 0), row.length)
    order = sorted(range(len(rows)), key=lambda row: (-longest[prompts[row]], prompts[row]))
    return _cut(order, [longest[prompt] for prompt in prompts], micro_batch, max_tokens)


def _cut(rows: list[int], lengths: Sequence[int], micro_batch: int | None, max_tokens: int | None) -> list[MicroBatch]:
    """Cut rows (longest first) into micro-batches within both limits."""
    cuts: list[list[int]] = []
    for row in rows:
        widest = lengths[cuts[-1][0]] if cuts else 0
        full = not cuts or len(cuts[-1]) == micro_batch
        if full or (max_tokens is not None and widest * (len(cuts[-1]) + 1) > max_tokens):
            cuts.append([])
        cuts[-1].append(row)
    return [MicroBatch(tuple(cut)) for cut in cuts]
