"""Log-probabilities and entropies of tokens, from logits at the positions of these tokens alone.

The logits of a model with a large vocabulary take more memory than anything else of a training pass, so they are made
at response tokens only, and no second tensor of their size is made besides their gradient.

Shapes: N chosen positions, V words, H the width of hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from openrlhf_gagpo.errors import RunError

__all__ = ["Reading", "TokenScores", "fill", "log_probs_of", "score_logits", "score_positions"]

_BLOCK = 2**22
"""Logits of which float32 copies exist at a time."""


@dataclass(frozen=True)
class Reading:
    """What is read of a pass, and how."""

    temperature: float = 1.0
    """Divides the logits."""
    entropy: bool = False
    chunk: int = 0
    """Positions whose logits exist at a time, made once more in the backward pass; 0 for all."""


@dataclass(frozen=True)
class TokenScores:
    """What a model says about N tokens, with gradient."""

    log_probs: Tensor
    """(N,) float32."""
    entropy: Tensor | None
    """(N,) float32 in nats, of the distribution that each token was drawn from; None if it was not asked for."""


def score_positions(
    run: Callable[[], Any], head: torch.nn.Module | None, positions: Tensor, targets: Tensor, reading: Reading,
    divided_by: float = 1.0,
) -> TokenScores:  # fmt: skip
    """Run a model and score ``targets`` with the logits at ``positions``, the only ones that are made.

    The output layer is called inside the model, so that whatever else the model does to logits happens to these too.

    Args:
        run: runs the model; what it returns has ``logits``.
        head: the model's output layer.
        positions: (N,) places of the logits among all hidden states that the layer is given, row after row.
        targets: (N,) token ids.
        divided_by: by what ``run`` has divided the logits already, as a part of the temperature.

    Raises:
        RunError: the model has no output layer, or chunks are wanted of one that changes the layer's output.
    """
    if head is None:
        raise RunError("the model does not name its output layer (get_output_embeddings), so it cannot be trained")
    if not reading.chunk:
        with _restricted(head, lambda hidden: hidden.index_select(0, positions)):
            logits = run().logits
        return score_logits(logits.flatten(0, -2), targets, reading.temperature / divided_by, reading.entropy)
    hidden = _hidden_states(run, head, positions, divided_by)
    parts = [
        _checkpointed(head, states, tokens, reading)
        for states, tokens in zip(hidden.split(reading.chunk), targets.split(reading.chunk), strict=True)
    ]
    entropies = [entropy for _, entropy in parts if entropy is not None]
    return TokenScores(torch.cat([values for values, _ in parts]), torch.cat(entropies) if entropies else None)


def fill(values: Tensor, mask: Tensor) -> Tensor:
    """Return a tensor of the mask's shape with ``values`` where it is 1, row after row, and zero elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask.bool(), values)


def log_probs_of(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the log-probabilities of ``targets`` (...) under ``logits`` (..., V), in float32."""
    return score_logits(logits.flatten(0, -2), targets.flatten(), temperature).log_probs.view(targets.shape)


def score_logits(logits: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False) -> TokenScores:
    """Score ``targets`` (N,) under ``logits`` (N, V), which are read in float32 at least."""
    log_probs, entropies = _Score.apply(logits, targets, temperature, entropy)
    return TokenScores(log_probs, entropies)


class _Score(torch.autograd.Function):
    """Log-probabilities and entropies of the softmax of logits over a temperature.

    Written out because torch's own operations keep and make several tensors of the logits' size.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float, entropy: bool) -> Any:
        log_probs, norms = (logits.new_empty(len(targets), dtype=_wide(logits)) for _ in range(2))
        entropies = torch.empty_like(log_probs) if entropy else None
        for rows in _blocks(logits):
            scaled = logits[rows].to(_wide(logits)) / temperature
            norms[rows] = scaled.logsumexp(-1)
            log_probs[rows] = scaled.gather(-1, targets[rows, None])[:, 0] - norms[rows]
            if entropies is not None:
                scaled.sub_(norms[rows, None])
                entropies[rows] = -scaled.mul_(scaled.exp()).sum(-1)
        ctx.save_for_backward(logits, targets, norms, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_log_prob: Tensor | None, by_entropy: Tensor | None) -> Any:
        logits, targets, norms, entropies = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _blocks(logits):
            # With p the probabilities and h the entropy: d log p_t = [t] - p, and d h = -p (log p + h).
            part = (logits[rows].to(_wide(logits)) / ctx.temperature).sub_(norms[rows, None])
            probs = part.exp()
            if by_entropy is None:
                part.zero_()
            else:
                part.add_(entropies[rows, None]).mul_(-by_entropy[rows, None])
            if by_log_prob is not None:
                part.sub_(by_log_prob[rows, None])
            part.mul_(probs)
            if by_log_prob is not None:
                part.scatter_add_(-1, targets[rows, None], by_log_prob[rows, None])
            gradient[rows] = part.div_(ctx.temperature)
        return gradient, None, None, None


def _wide(logits: Tensor) -> torch.dtype:
    """Return the number format in which logits are read: float32, or their own if that is wider."""
    return torch.promote_types(logits.dtype, torch.float32)


def _blocks(logits: Tensor) -> Iterator[slice]:
    size = max(1, _BLOCK // logits.shape[-1])
    return (slice(start, start + size) for start in range(0, len(logits), size))


@contextmanager
def _restricted(head: torch.nn.Module, choose: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give the output layer chosen hidden states, (..., H) -> (1, N, H), in place of all."""

    def replace(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (choose(inputs[0].flatten(0, -2))[None], *inputs[1:])

    handle = head.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _hidden_states(run: Callable[[], Any], head: torch.nn.Module, positions: Tensor, divided_by: float) -> Tensor:
    """Run the model and return the (N, H) hidden states at ``positions``; the output layer gets the first one alone."""
    kept: list[Tensor] = []
    made: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        kept.append(hidden.index_select(0, positions))
        return kept[0][:1]

    # A copy, because the logits may be divided in place.
    watch = head.register_forward_hook(lambda _, __, output: made.append(output.detach().float().clone()))
    try:
        with _restricted(head, keep):
            logits = run().logits.detach().float() * divided_by
    finally:
        watch.remove()
    if not torch.allclose(logits, made[0], rtol=1e-4, atol=1e-5):
        raise RunError(
            "this model changes its logits after its output layer, so they cannot be made in chunks; set "
            "--train.logit_chunk to 0"
        )
    return kept[0]


def _checkpointed(
    head: torch.nn.Module, hidden: Tensor, targets: Tensor, reading: Reading
) -> tuple[Tensor, Tensor | None]:
    """Score a chunk without keeping its logits for the backward pass, which makes them again."""

    def score(states: Tensor) -> tuple[Tensor, Tensor | None]:
        scores = score_logits(head(states), targets, reading.temperature, reading.entropy)
        return scores.log_probs, scores.entropy

    result: tuple[Tensor, Tensor | None] = checkpoint(score, hidden, use_reentrant=False)
    return result
