"""Parsing of a response into the action that it names and whether it has the required form."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

__all__ = ["FALLBACK_CHARACTERS", "ParsedAction", "parse_action"]

FALLBACK_CHARACTERS = 100
"""Characters from the end of a malformed response that the environment gets."""

# Four fixed strings make the scan linear in the response. ASCII keeps case folding from matching look-alike letters.
_TAG = re.compile(r"<(/?)(think|action)>", re.IGNORECASE | re.ASCII)


class ParsedAction(NamedTuple):
    """The action that a response names."""

    action: str
    """Text for the environment."""
    format_valid: bool


def parse_action(
    response: str,
    *,
    think: bool,
    action_tags: bool,
    thinking_opened: bool = False,
    finish_reason: Literal["stop", "length"] = "stop",
) -> ParsedAction:
    """Read the action out of ``response``. Never raises; time is linear in the length of the response.

    Tags are matched in any letter case and carry neither spaces nor attributes.

    * **Thinking** runs from ``<think>`` to the next ``</think>``, or to the end of the response if it is never closed.
      A ``</think>`` without an opening tag makes everything before it thinking. Text inside thinking is never an
      action, whether the run asks for thinking or not.
    * **With action tags** the action is the stripped content of the last complete pair outside thinking. A pair is an
      opening tag and the first closing tag after it with no other tag between them: of nested pairs the inner one
      counts, a second opening tag replaces the first, and an unclosed or unopened tag is ignored. An empty last pair
      counts as no action.
    * **Without action tags** the action is the whole stripped response, or with ``think`` the text after the last
      closed thinking block.
    * **The format is valid** if there is a non-empty action and, with ``think``, a properly opened block was closed
      before it. Without action tags the response must also have ended by itself (``finish_reason`` "stop"), because
      nothing else marks the end of the action.
    * **If the action is missing** (no usable pair; with ``think`` and without tags, no closed block) the environment
      gets the end of the response instead, at most ``FALLBACK_CHARACTERS`` on one line, so that the episode goes on.

    Args:
        response: decoded response.
        think: whether the run asks for a thinking block.
        action_tags: whether the run asks for the action in tags.
        thinking_opened: whether the prompt ended in ``<think>``, so that the response starts inside thinking.
        finish_reason: why the generation ended.
    """
    thinking = thinking_opened
    thought_end: int | None = None
    opened_at: int | None = None
    pair: tuple[int, int] | None = None
    thought_before_pair = False
    for tag in _TAG.finditer(response):
        closing = bool(tag[1])
        if tag[2].lower() == "think":
            opened_at = None
            if not closing:
                thinking = True
            elif thinking:
                thinking, thought_end = False, tag.end()
            else:
                # Without an opening tag, everything before was thinking, and no action in it counts.
                pair, thought_end = None, None
        elif thinking:
            continue
        elif not closing:
            opened_at = tag.end()
        elif opened_at is not None:
            pair, thought_before_pair = (opened_at, tag.start()), thought_end is not None
            opened_at = None

    if action_tags:
        action = response[slice(*pair)].strip() if pair else ""
        if not action:
            return ParsedAction(_tail(response), False)
        return ParsedAction(action, thought_before_pair or not think)
    if not think:
        action = response.strip()
    elif thinking or thought_end is None:
        return ParsedAction(_tail(response), False)
    else:
        action = response[thought_end:].strip()
    return ParsedAction(action, bool(action) and finish_reason == "stop")


def _tail(response: str) -> str:
    return " ".join(response.rstrip()[-FALLBACK_CHARACTERS:].split())
