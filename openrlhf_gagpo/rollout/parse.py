"""From the text of a response to the action it names and whether it kept the asked-for form."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

__all__ = ["FALLBACK_CHARACTERS", "ParsedAction", "parse_action"]

FALLBACK_CHARACTERS = 100
"""How much of the end of a malformed response is handed to the environment."""

# Four fixed strings: the scan is linear in the response. ASCII keeps case folding from matching look-alike letters.
_TAG = re.compile(r"<(/?)(think|action)>", re.IGNORECASE | re.ASCII)


class ParsedAction(NamedTuple):
    """What a response asks the environment to do."""

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

    * **Thinking** runs from ``<think>`` to the next ``</think>``, or to the end of the response where it is never
      closed. A ``</think>`` that closes nothing makes everything before it thinking. Nothing inside thinking is ever
      an action, whether the run asks for thinking or not.
    * **With action tags** the action is the stripped content of the last complete pair outside thinking. A pair is an
      opening tag and the first closing tag after it with no other tag between them: of nested pairs the inner one
      counts, a second opening tag replaces the first, an unclosed or unopened tag counts for nothing. A last pair
      with nothing in it counts as no action.
    * **Without action tags** the action is the whole stripped response, or with ``think`` what follows the last
      closed thinking block.
    * **The format is valid** when there is a non-empty action and, with ``think``, a properly opened block was closed
      before it. Without action tags the response must also have ended by itself (``finish_reason`` "stop"): nothing
      else marks the end of the action.
    * **Where the action is missing** (no usable pair; with ``think`` and without tags, no closed block) the
      environment gets the end of the response instead, at most ``FALLBACK_CHARACTERS`` on one line, so that the
      episode goes on.

    Args:
        response: decoded response.
        think: the run asks for a thinking block.
        action_tags: the run asks for the action in tags.
        thinking_opened: the prompt already ended in ``<think>``, so the response starts inside thinking.
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
                # No opening tag was seen: what came before was thinking and no action in it counts.
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
