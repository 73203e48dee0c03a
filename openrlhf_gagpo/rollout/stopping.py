"""The token with which an action in tags ends, by one rule for every sampler."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["StopRule"]


@dataclass(frozen=True)
class StopRule:
    """An action ends with the token that holds the last character of its closing tag.

    The tag is one that ``rollout.parse`` counts: it closes a pair that is not empty and stands outside thinking. Of
    several kinds of tags, the first pair to be completed decides, from the first opening tag of its kind and also if it
    is empty. Text after the tag in the same token belongs to the response, which is trained as it was sampled.
    """

    names: tuple[str, ...]
    """Names of the tags that an action can stand in."""
    decode: Callable[[Sequence[int]], str]
    """Turns token ids into text without special tokens."""
    thinking_opened: bool = False
    """Whether the prompt ended in ``<think>``."""

    @property
    def closing_tags(self) -> list[str]:
        """The texts without which no action ends; they may also stand where none does."""
        return [f"</{name}>" for name in self.names]

    def ends(self, token_ids: Sequence[int]) -> bool:
        """Return whether a response that has not ended before its last token ends with it."""
        # A tag's last character shows in its token alone, whatever the token merges it with, so the whole response is
        # decoded only after such tokens.
        return ">" in self.decode(token_ids[-1:]) and self._holds_an_action(self.decode(token_ids))

    @cached_property
    def _tags(self) -> re.Pattern[str]:
        return re.compile(f"<(/?)(think|{'|'.join(map(re.escape, self.names))})>", re.IGNORECASE | re.ASCII)

    def _holds_an_action(self, text: str) -> bool:
        several = len(self.names) > 1
        thinking = self.thinking_opened
        opened: dict[str, re.Match[str]] = {}
        for tag in self._tags.finditer(text):
            closing, name = bool(tag[1]), tag[2].lower()
            if name == "think":
                thinking, opened = not closing, {}
            elif thinking:
                continue
            elif closing:
                first = opened.pop(name, None)
                if first is not None and (several or text[first.end() : tag.start()].strip()):
                    return True
            elif not several or name not in opened:
                opened[name] = tag
        return False
