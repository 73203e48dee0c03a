"""Prompts that the sampler has read: keys, values and next-token logits, for as long as the weights stay the same.

Episodes of a group meet the same states in different turns, so a rollout asks for most of its prompts more than once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from openrlhf_gagpo.backends.local_models import keeps_every_token

__all__ = ["PromptPool", "ReadPrompts"]


@dataclass
class ReadPrompts:
    """B prompts that a model has read, padded on the left to W tokens."""

    cache: DynamicCache
    mask: Tensor
    """(B, W) int64, 1 on tokens."""
    logits: Tensor
    """(B, V), which predict the first token of the answer."""

    def take(self, rows: Tensor) -> ReadPrompts:
        """Return some rows, in any order and number, copied and without columns that are padding in all of them."""
        mask = self.mask[rows]
        start = int(mask.argmax(-1).min())
        parts = [(layer.keys[rows, :, start:], layer.values[rows, :, start:]) for layer in self.cache.layers]
        return ReadPrompts(DynamicCache(parts), mask[:, start:], self.logits[rows])

    def join(self, other: ReadPrompts) -> ReadPrompts:
        """Return the rows of both."""
        width = max(self.mask.shape[1], other.mask.shape[1])

        def both(one: Tensor, two: Tensor) -> Tensor:
            return torch.cat([pad(part, (0, 0, width - part.shape[2], 0)) for part in (one, two)])

        layers = zip(self.cache.layers, other.cache.layers, strict=True)
        parts = [(both(one.keys, two.keys), both(one.values, two.values)) for one, two in layers]
        mask = torch.cat([pad(part, (width - part.shape[1], 0)) for part in (self.mask, other.mask)])
        return ReadPrompts(DynamicCache(parts), mask, torch.cat([self.logits, other.logits]))


class PromptPool:
    """Reads prompts with a model, each once until ``clear``, if the model's cache permits that.

    Args:
        limit: when more padded tokens than this are kept, the pool starts again.
    """

    def __init__(self, model: Any, pad_id: int, limit: int = 16384) -> None:
        self.model = model
        self.pad_id = pad_id
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget all prompts, because the weights may change."""
        self._places: dict[tuple[int, ...], int] = {}
        self._kept: ReadPrompts | None = None

    def read(self, prompts: Sequence[Sequence[int]]) -> ReadPrompts:
        """Return what the model makes of ``prompts``, which may repeat; the result is the caller's to change."""
        keys = [tuple(prompt) for prompt in prompts]
        if self._kept is not None and self._kept.mask.numel() > self.limit:
            self.clear()
        new = [prompt for prompt in dict.fromkeys(keys) if prompt not in self._places]
        kept = self._kept
        if kept is None or new:
            fresh = self._forward(new)
            if not keeps_every_token(self.model):
                rows = torch.tensor([new.index(prompt) for prompt in keys], device=fresh.mask.device)
                fresh.cache.batch_select_indices(rows)
                return ReadPrompts(fresh.cache, fresh.mask[rows], fresh.logits[rows])
            kept = self._kept = fresh if kept is None else kept.join(fresh)
            for prompt in new:
                self._places[prompt] = len(self._places)
        return kept.take(torch.tensor([self._places[prompt] for prompt in keys], device=kept.mask.device))

    def _forward(self, prompts: Sequence[tuple[int, ...]]) -> ReadPrompts:
        device = next(self.model.parameters()).device
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[self.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        cache = DynamicCache(config=self.model.config)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return ReadPrompts(cache, mask, output.logits[:, -1])
