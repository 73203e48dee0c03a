"""Golden answers in tokens, for runs that measure how likely the policy finds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from openrlhf_gagpo.rollout.prompt import PromptBuilder
from openrlhf_gagpo.rollout.types import AnswerTokens

__all__ = ["Golden", "GoldenAnswers"]

Golden = Literal["none", "first", "all"]
"""Which of a task's golden answers are encoded."""


class GoldenAnswers:
    """Encodes the answers that an environment gives as ``Reset.info["answers"]``.

    Args:
        every: all of a task's answers, not the first alone.
    """

    def __init__(self, prompts: PromptBuilder, *, every: bool) -> None:
        self._prompts = prompts
        self._every = every

    def encode(self, info: Mapping[str, object], *, thinking_opened: bool) -> list[AnswerTokens]:
        """Return the answers in tokens; none if the environment gives none for this task."""
        found = info.get("answers")
        texts = [text for text in found if isinstance(text, str) and text] if isinstance(found, (list, tuple)) else []
        chosen = texts if self._every else texts[:1]
        return [self._prompts.spoken(text, thinking_opened=thinking_opened) for text in chosen]
