"""The training pass of the local backend: logits at the response tokens of rows, of which many share a prompt, or are
segments of one sequence.

Shapes: B rows, R response positions (right padded), P distinct prompts of at most W tokens, V words.
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

__all__ = ["ResponseLogits", "plain_pass", "response_logits", "shared_pass"]

# Two passes are slower than one unless the first is clearly smaller.
_WORTH_SHARING = 0.75


@dataclass(frozen=True)
class ResponseLogits:
    """What a model says about the responses of B rows."""

    logits: Tensor
    """(B, R, V), which predict the tokens."""
    tokens: Tensor
    """(B, R) int64."""
    mask: Tensor
    """(B, R) int64, 1 on response tokens."""


def response_logits(model: Any, rows: Sequence[TokenRow], pad_id: int) -> ResponseLogits:
    """Run ``model`` over ``rows``, each distinct prompt once if that is worth it and the model allows it."""
    prompts = {tuple(row.prompt_ids) for row in rows}
    sequences = max(sequence_numbers(rows)) + 1
    shares = len(prompts) <= _WORTH_SHARING * sequences and _can_share(model)
    return (shared_pass if shares else plain_pass)(model, rows, pad_id)


def _can_share(model: Any) -> bool:
    """Return whether a pass can go on from the keys and values of another; gradient checkpointing keeps none."""
    return keeps_every_token(model) and not (model.training and model.is_gradient_checkpointing)


def plain_pass(model: Any, rows: Sequence[TokenRow], pad_id: int) -> ResponseLogits:
    """Run ``model`` over every sequence of prompts and responses."""
    device = model.device
    batch = collate(rows, pad_id=pad_id)
    tokens, mask = _responses(rows, pad_id)
    # The logits before a response start with those of its prompt's last token.
    starts = torch.tensor([len(row.prompt_ids) - 1 for row in rows])
    first = int(starts.min())
    attention = batch.attention_mask.to(device)
    logits = model(
        input_ids=batch.sequences.to(device),
        attention_mask=attention,
        position_ids=(attention.cumsum(-1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=batch.sequences.shape[1] - first,
    ).logits
    places = (starts[:, None] - first + torch.arange(tokens.shape[1])).clamp(max=logits.shape[1] - 1).to(device)
    chosen = logits[batch.responses.sequence.to(device)[:, None], places]
    return ResponseLogits(chosen, tokens.to(device), mask.to(device))


def shared_pass(model: Any, rows: Sequence[TokenRow], pad_id: int) -> ResponseLogits:
    """Run ``model`` over every distinct prompt, and from its keys and values over the responses to it.

    The gradient flows through keys and values, so it is that of ``plain_pass``.
    """
    device = model.device
    index: dict[tuple[int, ...], int] = {}
    prompt_of = torch.tensor([index.setdefault(tuple(row.prompt_ids), len(index)) for row in rows], device=device)
    sizes = torch.tensor([len(prompt) for prompt in index], device=device)
    width = int(sizes.max())
    prompts, prompt_mask = (part.to(device) for part in pad_right(list(index), pad_id=pad_id, width=width))
    tokens, mask = (part.to(device) for part in _responses(rows, pad_id))

    cache = DynamicCache(config=model.config)
    # Only the last tokens of prompts predict something of interest.
    ends = (sizes - 1).unique()
    logits = model(
        input_ids=prompts,
        attention_mask=prompt_mask,
        position_ids=torch.arange(width, device=device).expand_as(prompts),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=ends,
    ).logits
    first = logits[torch.arange(len(index), device=device), torch.searchsorted(ends, sizes - 1)][prompt_of, None]
    if tokens.shape[1] == 1:
        return ResponseLogits(first, tokens, mask)
    cache.batch_select_indices(prompt_of)
    rest = model(
        input_ids=tokens[:, :-1],
        attention_mask=torch.cat([prompt_mask[prompt_of], mask[:, :-1]], dim=-1),
        # A shorter prompt's padding lies between it and its response and takes up no position.
        position_ids=sizes[prompt_of, None] + torch.arange(tokens.shape[1] - 1, device=device),
        past_key_values=cache,
        use_cache=True,
    ).logits
    return ResponseLogits(torch.cat([first, rest], dim=1), tokens, mask)


def _responses(rows: Sequence[TokenRow], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return the responses and their mask, both (B, R); R is at least 1."""
    responses = [row.response_ids for row in rows]
    return pad_right(responses, pad_id=pad_id, width=max(1, *map(len, responses)))
