"""Sequences that the sampler has read: keys, values and next-token logits, for as long as the weights stay the same.

Episodes of a group meet the same states in different turns and answer them alike, and prompts of one environment begin
alike. So the sampler's sequences, prompt and answer so far, are kept as a tree with a token at each node, and of a
sequence the model reads only what is not in the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from openrlhf_gagpo.backends.local_models import keeps_every_token

__all__ = ["SequencePool"]

_ROOT = 0
"""The empty sequence, whose column in the stores of keys and values is the padding."""

_Way = tuple[int, tuple[int, ...]]
"""A place, and tokens that are to be read after it."""


class _Store:
    """Tensors of one shape, numbered in the order in which they were added."""

    def __init__(self) -> None:
        self._rows = torch.empty(0)
        self._count = 0

    @property
    def bytes(self) -> int:
        """Memory that they take, with the room for more."""
        return self._rows.nbytes

    def add(self, rows: Tensor) -> None:
        """Add (R, ...) tensors; room doubles, so that a tensor is moved about once."""
        end = self._count + len(rows)
        if end > len(self._rows):
            larger = rows.new_empty((max(end, 2 * len(self._rows)), *rows.shape[1:]))
            if self._count:
                larger[: self._count] = self._rows[: self._count]
            self._rows = larger
        self._rows[self._count : end] = rows
        self._count = end

    def take(self, numbers: Tensor) -> Tensor:
        """Return copies, (...) numbers -> (..., *shape)."""
        return self._rows.index_select(0, numbers.flatten()).view(*numbers.shape, *self._rows.shape[1:])


@dataclass
class _Past:
    """B sequences that a model can go on with."""

    cache: DynamicCache
    mask: Tensor
    """(B, W) int64, 1 on tokens."""


@dataclass
class _Pass:
    """What the model made of B sequences in its last pass."""

    row_of: dict[int, int]
    """The row of each place."""
    past: _Past
    logits: Tensor
    """(B, V)."""


class SequencePool:
    """Reads sequences with a model, each one once until ``clear``, if the model's cache permits that.

    A place is the number of a sequence; it is valid until the next ``read`` or ``extend``.

    The pool is open or closed. While it is open, it keeps all that is read, and places are nodes of the tree. While it
    is closed, it keeps nothing but its last pass, each pass reads all sequences that are asked for, and places are the
    rows of that pass. A pool that has outgrown its limit closes until the next ``read``, which empties it. If the model
    does not cache every token, the pool is always closed.

    A batch that only grows, each sequence by a token, goes on with the cache of the last pass. Other batches get a
    cache put together from what is kept.

    Args:
        limit: bytes of kept tensors above which the pool closes. It may hold twice as much and one pass more, since
            room for tensors doubles.
    """

    def __init__(self, model: Any, pad_id: int, limit: int = 2**28) -> None:
        self.model = model
        self.pad_id = pad_id
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget all sequences, because the weights may change."""
        self._parents = [_ROOT]
        """The node before each node, by node; the root's is itself."""
        self._children: dict[tuple[int, int], int] = {}
        """The node after (node, token)."""
        self._ends: dict[tuple[int, ...], int] = {}
        """The nodes where prompts end that were read and kept."""
        self._keys: list[_Store] = []
        """By layer, (H, D) of each node's token."""
        self._values: list[_Store] = []
        self._logits = _Store()
        self._logits_of: dict[int, int] = {}
        """Which logits belong to a node; those inside of a prompt have none."""
        self._last: _Pass | None = None
        self._open = False

    def read(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Return the places of ``prompts``, which may repeat."""
        if self.bytes() > self.limit:
            self.clear()
        self._last = None
        self._open = self._keeps_every_token
        self._device = next(self.model.parameters()).device
        keys = [tuple(prompt) for prompt in prompts]
        ways = {prompt: self._split(prompt) for prompt in dict.fromkeys(keys)}
        places = self._reach([ways[prompt] for prompt in keys])
        if self._open:
            self._ends.update(zip(keys, places, strict=True))
        return places

    def extend(self, longer: Sequence[tuple[int, int]]) -> list[int]:
        """Return the places of sequences one token longer, given as place and token; they may repeat.

        The places must come from the last ``read`` or ``extend``.
        """
        self._open = self._open and self.bytes() <= self.limit
        return self._reach([(place, (token,)) for place, token in longer])

    def logits(self, places: Sequence[int]) -> Tensor:
        """Return the (R, V) logits of the next token after each of the R places that were given last."""
        if self._open:
            return self._logits.take(self._indices([self._logits_of[place] for place in places]))
        assert self._last is not None
        return self._last.logits[self._indices([self._last.row_of[place] for place in places])]

    def bytes(self) -> int:
        """Return how much memory the kept tensors take."""
        return sum(store.bytes for store in (*self._keys, *self._values, self._logits))

    @cached_property
    def _keeps_every_token(self) -> bool:
        return keeps_every_token(self.model)

    def _split(self, prompt: tuple[int, ...]) -> _Way:
        """Return how far the tree knows ``prompt``, and the tokens from there on, at least the last one."""
        if prompt in self._ends:
            return self._parents[self._ends[prompt]], prompt[-1:]
        node = _ROOT
        for known, token in enumerate(prompt[:-1]):
            child = self._children.get((node, token))
            if child is None:
                return node, prompt[known:]
            node = child
        return node, prompt[-1:]

    def _reach(self, ways: Sequence[_Way]) -> list[int]:
        """Return where each way ends; read the ends that are not known."""
        ends: dict[_Way, int] = {}
        new = []
        for way in dict.fromkeys(ways):
            end = self._known(way)
            if end is None:
                new.append(way)
            else:
                ends[way] = end
        if new:
            ends.update(zip(new, self._pass(new), strict=True))
        return [ends[way] for way in ways]

    def _known(self, way: _Way) -> int | None:
        """Return the end of a way that need not be read."""
        place, tokens = way
        end = self._children.get((place, tokens[0])) if self._open and len(tokens) == 1 else None
        return end if end in self._logits_of else None

    def _pass(self, ways: Sequence[_Way]) -> list[int]:
        """Read the tokens of distinct ways in one pass of the model; return the places where they end."""
        past = self._past([place for place, _ in ways])
        width = max(len(tokens) for _, tokens in ways)
        ids = self._indices([[self.pad_id] * (width - len(tokens)) + list(tokens) for _, tokens in ways])
        read = self._indices([[0] * (width - len(tokens)) + [1] * len(tokens) for _, tokens in ways])
        mask = torch.cat([past.mask, read], dim=-1)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1)[:, -width:] - 1).clamp(min=0),
            past_key_values=past.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        ends = self._keep(ways, past.cache, logits) if self._open else list(range(len(ways)))
        self._last = _Pass({end: row for row, end in enumerate(ends)}, _Past(past.cache, mask), logits)
        return ends

    def _past(self, places: Sequence[int]) -> _Past:
        """Return the keys and values of sequences, from the last pass if it has them all."""
        if self._last is not None and all(place in self._last.row_of for place in places):
            past, rows = self._last.past, [self._last.row_of[place] for place in places]
            if rows == list(range(len(past.mask))):
                return past
            chosen = self._indices(rows)
            past.cache.batch_select_indices(chosen)
            return _Past(past.cache, past.mask[chosen])
        if not any(places):
            return _Past(DynamicCache(config=self.model.config), self._indices([[]] * len(places)))
        paths = [self._path(place) for place in places]
        width = max(map(len, paths))
        nodes = self._indices([[_ROOT] * (width - len(path)) + path for path in paths])
        layers = zip(self._keys, self._values, strict=True)
        parts = [(keys.take(nodes).transpose(1, 2), values.take(nodes).transpose(1, 2)) for keys, values in layers]
        return _Past(DynamicCache(parts), (nodes != _ROOT).long())

    def _path(self, node: int) -> list[int]:
        """Return the nodes from the root's child to ``node``."""
        path = []
        while node != _ROOT:
            path.append(node)
            node = self._parents[node]
        return path[::-1]

    def _keep(self, ways: Sequence[_Way], cache: DynamicCache, logits: Tensor) -> list[int]:
        """Keep what a pass made of ``ways``; return the nodes where they end."""
        ends: list[int] = []
        rows: list[int] = []
        columns: list[int] = []
        for row, (node, tokens) in enumerate(ways):
            known = 0
            while known < len(tokens) and (node, tokens[known]) in self._children:
                node = self._children[node, tokens[known]]
                known += 1
            rows += [row] * (len(tokens) - known)
            columns += range(known - len(tokens), 0)
            for token in tokens[known:]:
                self._children[node, token] = len(self._parents)
                self._parents.append(node)
                node = self._children[node, token]
            ends.append(node)
            self._logits_of[node] = len(self._logits_of)
        self._logits.add(logits)
        if not self._keys:
            self._keys = [_Store() for _ in cache.layers]
            self._values = [_Store() for _ in cache.layers]
            for layer, keys, values in zip(cache.layers, self._keys, self._values, strict=True):
                keys.add(torch.zeros_like(layer.keys[:1, :, 0]))
                values.add(torch.zeros_like(layer.values[:1, :, 0]))
        where = self._indices(rows), slice(None), self._indices(columns)
        for layer, keys, values in zip(cache.layers, self._keys, self._values, strict=True):
            keys.add(layer.keys[where])
            values.add(layer.values[where])
        return ends

    def _indices(self, numbers: Sequence[Any]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)
