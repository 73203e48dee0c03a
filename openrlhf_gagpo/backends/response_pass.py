"""The training pass of the local backend: log-probabilities at the response tokens of rows, of which many share a
prompt, or are segments of one sequence.

Shapes: B rows, R response positions (right padded), P distinct prompts of at most W tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from openrlhf_gagpo.backends.local_models import keeps_every_token
from openrlhf_gagpo.training.collate import collate, pad_right
from openrlhf_gagpo.training.rows import TokenRow, sequence_numbers
from openrlhf_gagpo.training.token_scores import Reading, TokenScores, fill, score_positions

__all__ = ["ResponseScores", "plain_pass", "response_pass", "shared_pass"]

# Two passes are slower than one unless the first is clearly smaller.
_WORTH_SHARING = 0.75


@dataclass(frozen=True)
class ResponseScores:
    """What a model says about the responses of B rows, with gradient; zero outside ``mask``."""

    log_probs: Tensor
    """(B, R) float32."""
    entropy: Tensor | None
    """(B, R) in nats; None if it was not asked for."""
    mask: Tensor
    """(B, R) int64, 1 on response tokens."""


def response_pass(model: Any, rows: Sequence[TokenRow], pad_id: int, reading: Reading) -> ResponseScores:
    """Run ``model`` over ``rows``, each distinct prompt once if that is worth it and the model allows it."""
    prompts = {tuple(row.prompt_ids) for row in rows}
    sequences = max(sequence_numbers(rows)) + 1
    shares = len(prompts) <= _WORTH_SHARING * sequences and _can_share(model)
    return (shared_pass if shares else plain_pass)(model, rows, pad_id, reading)


def _can_share(model: Any) -> bool:
    """Return whether a pass can go on from the keys and values of another; gradient checkpointing keeps none."""
    return keeps_every_token(model) and not (model.training and model.is_gradient_checkpointing)


def plain_pass(model: Any, rows: Sequence[TokenRow], pad_id: int, reading: Reading) -> ResponseScores:
    """Run ``model`` over every sequence of prompts and responses."""
    device = model.device
    batch = collate(rows, pad_id=pad_id)
    tokens, mask = _responses(rows, pad_id)
    chosen = mask.bool()
    # The logits before a response start with those of its prompt's last token.
    starts = torch.tensor([len(row.prompt_ids) - 1 for row in rows]) + batch.responses.sequence * len(
        batch.sequences[0]
    )
    positions = (starts[:, None] + torch.arange(tokens.shape[1]))[chosen]
    attention = batch.attention_mask.to(device)

    def run() -> Any:
        return model(
            input_ids=batch.sequences.to(device),
            attention_mask=attention,
            position_ids=(attention.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        )

    scores = score_positions(
        run, model.get_output_embeddings(), positions.to(device), tokens[chosen].to(device), reading
    )
    return _by_row(scores, mask.to(device))


def shared_pass(model: Any, rows: Sequence[TokenRow], pad_id: int, reading: Reading) -> ResponseScores:
    """Run ``model`` over every distinct prompt, and from its keys and values over the responses to it.

    The gradient flows through keys and values, so it is that of ``plain_pass``.
    """
    device, head = model.device, model.get_output_embeddings()
    index: dict[tuple[int, ...], int] = {}
    prompt_of = torch.tensor([index.setdefault(tuple(row.prompt_ids), len(index)) for row in rows], device=device)
    sizes = torch.tensor([len(prompt) for prompt in index], device=device)
    width = int(sizes.max())
    prompts, prompt_mask = (part.to(device) for part in pad_right(list(index), pad_id=pad_id, width=width))
    tokens, mask = (part.to(device) for part in _responses(rows, pad_id))
    chosen = mask.bool()
    cache = DynamicCache(config=model.config)

    def read_prompts() -> Any:
        return model(
            input_ids=prompts,
            attention_mask=prompt_mask,
            position_ids=torch.arange(width, device=device).expand_as(prompts),
            past_key_values=cache,
            use_cache=True,
        )

    # The first token of a response is predicted by the last one of its prompt.
    ends = (prompt_of * width + sizes[prompt_of] - 1)[chosen[:, 0]]
    first = score_positions(read_prompts, head, ends, tokens[chosen[:, 0], 0], reading)
    if tokens.shape[1] == 1:
        return _by_row(first, mask)
    cache.batch_select_indices(prompt_of)

    def read_responses() -> Any:
        return model(
            input_ids=tokens[:, :-1],
            attention_mask=torch.cat([prompt_mask[prompt_of], mask[:, :-1]], dim=-1),
            # A shorter prompt's padding lies between it and its response and takes up no position.
            position_ids=sizes[prompt_of, None] + torch.arange(tokens.shape[1] - 1, device=device),
            past_key_values=cache,
            use_cache=True,
        )

    later = chosen[:, 1:]
    rest = score_positions(read_responses, head, later.flatten().nonzero()[:, 0], tokens[:, 1:][later], reading)
    start, end = _by_row(first, mask[:, :1]), _by_row(rest, mask[:, 1:])
    entropy = None if start.entropy is None or end.entropy is None else torch.cat([start.entropy, end.entropy], dim=1)
    return ResponseScores(torch.cat([start.log_probs, end.log_probs], dim=1), entropy, mask)


def _by_row(scores: TokenScores, mask: Tensor) -> ResponseScores:
    entropy = None if scores.entropy is None else fill(scores.entropy, mask)
    return ResponseScores(fill(scores.log_probs, mask), entropy, mask)


def _responses(rows: Sequence[TokenRow], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return the responses and their mask, both (B, R); R is at least 1."""
    responses = [row.response_ids for row in rows]
    return pad_right(responses, pad_id=pad_id, width=max(1, *map(len, responses)))
