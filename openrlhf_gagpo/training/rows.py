"""Training rows, and the plan of optimizer steps over them.

One row is one environment step with its final credit; this module does not change credit, drop rows or repeat them.
Rows may be segments of one token sequence, which a model reads once (see ``TokenRow.sequence``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MicroBatch",
    "OptimizerStep",
    "TokenRow",
    "TrainingRow",
    "longest_rows",
    "plan_by_prompt",
    "plan_updates",
    "prompt_numbers",
    "sequence_numbers",
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
    sequence: int | None = field(default=None, compare=False, kw_only=True)
    """Number that rows share whose prompt and response are the beginning of those of the longest of them; None for a
    sequence of its own."""

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


def sequence_numbers(rows: Sequence[TokenRow]) -> list[int]:
    """Return one number per row that the rows of a sequence share, counted from 0 in order of appearance."""
    index: dict[int | tuple[int], int] = {}
    keys = ((place,) if row.sequence is None else row.sequence for place, row in enumerate(rows))
    return [index.setdefault(key, len(index)) for key in keys]


def longest_rows(rows: Sequence[_Row], sequence_of: Sequence[int]) -> list[_Row]:
    """Return the longest row of every sequence, which holds all its tokens.

    Args:
        sequence_of: each row's sequence, counted from 0 in order of appearance.
    """
    longest: dict[int, _Row] = {}
    for row, number in zip(rows, sequence_of, strict=True):
        if number not in longest or row.length > longest[number].length:
            longest[number] = row
    return list(longest.values())


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward and backward pass, plus ``padding`` rows without weight."""

    rows: tuple[int, ...]
    """Those of a sequence follow each other."""
    padding: int = 0
    sequence_of: tuple[int, ...] = ()
    """Which of the sequences that the pass reads each row is a part of, counted from 0 in order of appearance."""


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
    sequences: Sequence[int] | None = None,
    equal: Sequence[int] | None = None,
) -> list[OptimizerStep]:
    """Plan the optimizer steps of one iteration.

    Each epoch has ``ceil(N / mini_batch)`` steps over a seeded permutation of the sequences, each with the rows that
    are its segments. A sequence is never divided, so an optimizer step may hold a few rows more than ``mini_batch``,
    and there are at most as many steps as sequences; where every row is a sequence, the sizes of steps differ by at
    most one. Each step is dealt to the ranks by length and cut into micro-batches; a rank that has fewer sequences than
    another gets padding, never a copy.

    Args:
        lengths: (N,) tokens of prompt and response per row.
        response_lengths: (N,) response tokens per row.
        mini_batch: rows per optimizer step.
        micro_batch: maximum sequences per pass on one rank; None for as many as ``max_tokens`` allows.
        max_tokens: maximum padded tokens per pass on one rank (a single longer sequence still gets its pass).
        together: (N,) sequences whose longest rows have the same number (of their prompt, say) stay together in the
            permutation, so that most of them share an optimizer step, in which a backend may compute once what they
            have in common.
        sequences: (N,) rows with the same number are segments of one sequence (``sequence_numbers``); None if every
            row is a sequence.
        equal: (N,) sequences whose longest rows have the same number have the same tokens (``unique_rows``). Those of
            an optimizer step go to one pass, which reads them once, and count once wherever sequences are counted. None
            reads every sequence.
    """
    count = len(lengths)
    if count == 0:
        return []
    if mini_batch < 1 or (micro_batch is not None and micro_batch < 1) or ranks < 1 or epochs < 1:
        raise ValueError("mini_batch, micro_batch, ranks and epochs must be at least 1")
    units = _units(range(count) if sequences is None else sequences, lengths)
    steps_per_epoch = min(math.ceil(count / mini_batch), len(units))
    rng = np.random.default_rng(seed)
    plan = []
    for _ in range(epochs):
        order = rng.permutation(len(units))
        if together is not None:
            place: dict[int, int] = {}
            first_seen = [place.setdefault(together[units[unit][-1]], position) for position, unit in enumerate(order)]
            order = order[np.argsort(first_seen, kind="stable")]
        shuffled = [units[unit] for unit in order]
        for chosen in _split(shuffled, steps_per_epoch):
            read = chosen if equal is None else _merge(chosen, equal)
            by_length = sorted(read, key=lambda unit: (-lengths[unit[-1]], unit[-1]))
            shards = [_cut(by_length[rank::ranks], lengths, micro_batch, max_tokens) for rank in range(ranks)]
            passes = max(len(shard) for shard in shards)
            plan.append(
                OptimizerStep(
                    shards=tuple(tuple(shard + [MicroBatch((), 1)] * (passes - len(shard))) for shard in shards),
                    row_normalizer=count / steps_per_epoch,
                    token_normalizer=sum(response_lengths[row] for unit in chosen for row in unit),
                )
            )
    return plan


def plan_by_prompt(rows: Sequence[TokenRow], micro_batch: int | None, max_tokens: int | None) -> list[MicroBatch]:
    """Plan passes on one device over every row once, sequences of one prompt side by side so that few passes read it.

    Args:
        micro_batch: maximum sequences per pass; None for as many as ``max_tokens`` allows.
        max_tokens: maximum padded tokens per pass (a single longer sequence still gets its pass).
    """
    units = _units(sequence_numbers(rows), [row.length for row in rows])
    prompts = prompt_numbers(rows)
    longest: dict[int, int] = {}
    for prompt, row in zip(prompts, rows, strict=True):
        longest[prompt] = max(longest.get(prompt, 0), row.length)
    units.sort(key=lambda unit: (-longest[prompts[unit[-1]]], prompts[unit[-1]]))
    return _cut(units, [longest[prompt] for prompt in prompts], micro_batch, max_tokens)


_Unit = list[int]
"""Rows that a pass reads as one sequence, the longest last."""


def _units(sequences: Iterable[int], lengths: Sequence[int]) -> list[_Unit]:
    units: dict[int, _Unit] = {}
    for row, number in enumerate(sequences):
        units.setdefault(number, []).append(row)
    return [unit if len(unit) == 1 else sorted(unit, key=lambda row: lengths[row]) for unit in units.values()]


def _merge(units: Iterable[_Unit], equal: Sequence[int]) -> list[_Unit]:
    """Make one unit of those with the same tokens."""
    merged: dict[int, _Unit] = {}
    for unit in units:
        merged.setdefault(equal[unit[-1]], []).extend(unit)
    return list(merged.values())


def _split(units: Sequence[_Unit], parts: int) -> list[Sequence[_Unit]]:
    """Divide the units into parts with as nearly the same number of rows as undivided units allow, none empty."""
    ends = np.cumsum([len(unit) for unit in units])
    wanted = np.cumsum([len(part) for part in np.array_split(np.arange(ends[-1]), parts)])
    cuts = [0]
    for number, target in enumerate(wanted[:-1], start=1):
        nearest = int(np.abs(ends - target).argmin()) + 1
        cuts.append(min(max(nearest, cuts[-1] + 1), len(units) - (parts - number)))
    return [units[start:end] for start, end in pairwise([*cuts, len(units)])]


def _cut(
    units: Sequence[_Unit], lengths: Sequence[int], micro_batch: int | None, max_tokens: int | None
) -> list[MicroBatch]:
    """Cut units (longest first) into micro-batches within both limits."""
    cuts: list[list[_Unit]] = []
    for unit in units:
        widest = lengths[cuts[-1][0][-1]] if cuts else 0
        full = not cuts or len(cuts[-1]) == micro_batch
        if full or (max_tokens is not None and widest * (len(cuts[-1]) + 1) > max_tokens):
            cuts.append([])
        cuts[-1].append(unit)
    return [_micro_batch(cut) for cut in cuts]


def _micro_batch(units: Sequence[_Unit]) -> MicroBatch:
    sequence_of = [number for number, unit in enumerate(units) for _ in unit]
    return MicroBatch(tuple(chain.from_iterable(units)), sequence_of=tuple(sequence_of))
