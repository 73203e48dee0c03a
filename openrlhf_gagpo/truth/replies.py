"""The probability of every action text under a language model, by walking the tree of its responses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from openrlhf_gagpo.rollout.parse import ACTION_TAGS, parse_action, tagged
from openrlhf_gagpo.rollout.types import FinishReason, Prompt
from openrlhf_gagpo.truth.exact import Replies

__all__ = ["ReplyReader"]

_PROMPTS = 128
"""Prompts that go through the model together."""


@dataclass
class _Tree:
    """The responses to one prompt that were found so far."""

    texts: Collection[str]
    """The listed actions."""
    listed: set[tuple[int, ...]]
    """Every beginning of a listed action's tokens, which is followed however unlikely it is."""
    actions: dict[str, float] = field(default_factory=dict)
    missed: float = 0.0


@dataclass(frozen=True)
class ReplyReader:
    """Reads the distribution over action texts off a model, as responses are sampled with ``top_p`` 1.

    The responses of listed actions are followed to their end, and so are the ``widest`` other beginnings of responses
    of each length whose probability is at least ``smallest``. A hopeless beginning, with which no action begins, counts
    as a text of its own. What is cut off is counted as missed.
    """

    model: Any
    tokenizer: Any
    eos_ids: Collection[int]
    max_new_tokens: int
    temperature: float
    action_tags: bool
    hopeless: Callable[[Collection[str], str], bool]
    """``ExactModel.hopeless``."""
    smallest: float = 1e-5
    widest: int = 256
    context: AbstractContextManager[Any] = field(default_factory=nullcontext)
    tag_names: Sequence[str] = ACTION_TAGS

    def read(self, prompts: Sequence[Prompt], listed: Sequence[Collection[str]]) -> list[Replies]:
        """Return the distribution for each prompt; ``listed`` holds the actions that its environment lists."""
        found: list[Replies] = []
        for start in range(0, len(prompts), _PROMPTS):
            chosen = slice(start, start + _PROMPTS)
            found += self._walk(prompts[chosen], listed[chosen])
        return found

    @torch.inference_mode()
    def _walk(self, prompts: Sequence[Prompt], listed: Sequence[Collection[str]]) -> list[Replies]:
        trees = [_Tree(texts, {path for text in texts for path in self._beginnings(text)}) for texts in listed]
        input_ids, mask = self._padded([prompt.token_ids for prompt in prompts])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        owners = list(range(len(prompts)))
        paths: list[tuple[int, ...]] = [()] * len(prompts)
        mass = torch.ones(len(prompts), dtype=torch.float64)
        while owners:
            with self.context:
                logits = self.model(
                    input_ids=input_ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
            chances = mass[:, None] * torch.softmax(logits.double() / max(self.temperature, 1e-6), dim=-1).cpu()
            rows, tokens, kept = self._followed(chances, owners, paths, trees)
            grown: list[tuple[int, int, float]] = []
            for row, token, chance in zip(rows, tokens, kept, strict=True):
                path = (*paths[row], token)
                stopped = token in self.eos_ids
                if stopped or len(path) == self.max_new_tokens:
                    self._finish(
                        trees[owners[row]], prompts[owners[row]], path, "stop" if stopped else "length", chance
                    )
                elif not self._given_up(trees[owners[row]], path, chance):
                    grown.append((row, token, chance))
            parents = torch.tensor([row for row, _, _ in grown], dtype=torch.long, device=mask.device)
            paths = [(*paths[row], token) for row, token, _ in grown]
            owners = [owners[row] for row, _, _ in grown]
            mass = torch.tensor([chance for _, _, chance in grown], dtype=torch.float64)
            if owners:
                cache.batch_select_indices(parents)
                input_ids = torch.tensor([path[-1:] for path in paths], device=parents.device)
                mask = torch.cat([mask[parents], mask.new_ones((len(paths), 1))], dim=-1)
                positions = positions[parents, -1:] + 1
        return [Replies(tree.actions, tree.missed) for tree in trees]

    def _followed(
        self, chances: Tensor, owners: Sequence[int], paths: Sequence[tuple[int, ...]], trees: Sequence[_Tree]
    ) -> tuple[list[int], list[int], list[float]]:
        """Return rows, tokens and probabilities of the children to follow, and count the others as missed."""
        follow = self._likely(chances, owners)
        for row, (owner, path) in enumerate(zip(owners, paths, strict=True)):
            for longer in trees[owner].listed:
                if len(longer) == len(path) + 1 and longer[:-1] == path:
                    follow[row, longer[-1]] = True
        for owner, missed in zip(owners, chances.masked_fill(follow, 0.0).sum(-1).tolist(), strict=True):
            trees[owner].missed += missed
        rows, tokens = follow.nonzero(as_tuple=True)
        return rows.tolist(), tokens.tolist(), chances[rows, tokens].tolist()

    def _likely(self, chances: Tensor, owners: Sequence[int]) -> Tensor:
        """Return (N, V) which children are likely enough, at most ``widest`` of each tree."""
        follow = chances >= self.smallest
        counts: dict[int, int] = {}
        rows, tokens = follow.nonzero(as_tuple=True)
        for place in chances[rows, tokens].argsort(descending=True).tolist():
            row, token = int(rows[place]), int(tokens[place])
            counts[owners[row]] = counts.get(owners[row], 0) + 1
            if counts[owners[row]] > self.widest:
                follow[row, token] = False
        return follow

    def _given_up(self, tree: _Tree, path: tuple[int, ...], chance: float) -> bool:
        """Return whether no response that begins so is an action; if so, count it."""
        text = self.tokenizer.decode(path, skip_special_tokens=True)
        # Tags change what is read, and a character that is cut apart may still become any.
        if self.action_tags or "<" in text or "\ufffd" in text or not self.hopeless(tree.texts, text):
            return False
        tree.actions[text] = tree.actions.get(text, 0.0) + chance
        return True

    def _finish(self, tree: _Tree, prompt: Prompt, path: tuple[int, ...], reason: FinishReason, chance: float) -> None:
        parsed = parse_action(
            self.tokenizer.decode(path, skip_special_tokens=True),
            think=False,
            action_tags=self.action_tags,
            thinking_opened=prompt.text.rstrip().endswith("<think>"),
            finish_reason=reason,
            tag_names=self.tag_names,
        )
        tree.actions[parsed.action] = tree.actions.get(parsed.action, 0.0) + chance

    def _beginnings(self, action: str) -> list[tuple[int, ...]]:
        text = tagged(action, self.tag_names) if self.action_tags else action
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=False))[: self.max_new_tokens]
        whole = [(*tokens, eos) for eos in self.eos_ids] if len(tokens) < self.max_new_tokens else []
        return [*(tokens[:length] for length in range(1, len(tokens) + 1)), *whole]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Pad prompts on the left."""
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id or 0
        input_ids = torch.full((len(prompts), width), pad, dtype=torch.long)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        device = next(self.model.parameters()).device
        return input_ids.to(device), mask.to(device)
