"""Prompts that hold the whole episode as one conversation, for agents that look back at their own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from openrlhf_gagpo.errors import PromptTooLong
from openrlhf_gagpo.rollout.types import Exchange, Message, Prompt

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.prompt import HistoryEntry, PromptBuilder

__all__ = ["WORDING", "Conversation", "transcript"]

_OBSERVED = "Observation: {observation}"
_LISTED = "Possible actions: {actions}"
WORDING = f"{_OBSERVED}\n{_LISTED}"
"""What a conversation adds to the environment's own words."""


class Conversation:
    """``rollout.prompt.TurnPrompts`` over the growing history of thoughts, actions and observations.

    The first message is the environment's own prompt of a first turn, with its instructions. Then the policy's
    responses, complete with their thoughts, alternate with what the environment answered. If it does not fit, the
    oldest exchanges are left out; the first message stays.

    Args:
        prompts: the run's prompts.
        notes: text that stands before the first message's instructions.
    """

    def __init__(self, prompts: PromptBuilder, notes: str = "") -> None:
        self._prompts = prompts
        self._notes = notes

    def build(
        self,
        task: str,
        history: Sequence[HistoryEntry],
        observation: str,
        admissible_actions: Sequence[str],
        step: int,
        previous: Exchange | None = None,
    ) -> Prompt:
        """Build the prompt of a turn. Raises ``PromptTooLong`` if it does not fit even without any exchange."""
        opening = self._opening(task, history, observation, admissible_actions)
        for dropped in range(len(history)):
            try:
                kept = self._exchanges(history, observation, admissible_actions)[2 * dropped :]
                return replace(self._prompts.render([*opening, *kept]), history_dropped=dropped)
            except PromptTooLong:
                continue
        # Nothing but the current situation, in the words of a first turn.
        alone = self._opening(task, (), observation, admissible_actions)
        return replace(self._prompts.render(alone), history_dropped=len(history))

    def _opening(
        self, task: str, history: Sequence[HistoryEntry], observation: str, admissible_actions: Sequence[str]
    ) -> list[Message]:
        first = history[0].observation if history else observation
        # The actions that were possible at the start are no longer known, and would only mislead.
        offered = () if history else admissible_actions
        *before, turn = self._prompts.build(task, (), first, offered, 0).messages
        content = f"{self._notes}\n\n{turn['content']}" if self._notes else turn["content"]
        return [*before, {"role": turn["role"], "content": content}]

    def _exchanges(
        self, history: Sequence[HistoryEntry], observation: str, admissible_actions: Sequence[str]
    ) -> list[Message]:
        """Return response, observation, response, observation... of the whole history, the current one last."""
        seen = [entry.observation for entry in history[1:]] + [observation]
        messages: list[Message] = []
        for entry, text in zip(history, seen, strict=True):
            messages.append({"role": "assistant", "content": entry.response})
            messages.append({"role": "user", "content": _OBSERVED.format(observation=text)})
        if offered := self._prompts.offered(admissible_actions):
            messages[-1]["content"] += "\n" + _LISTED.format(actions=", ".join(offered))
        return messages


def transcript(responses: Sequence[str], observations: Sequence[str]) -> str:
    """Return what was answered and observed in turn, as text; there is one observation more than responses."""
    lines = [_OBSERVED.format(observation=observations[0])]
    for response, observation in zip(responses, observations[1:], strict=True):
        lines += [response, _OBSERVED.format(observation=observation)]
    return "\n".join(lines)
