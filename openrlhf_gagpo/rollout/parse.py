"""Parsing of a response into the action that it names and whether it has the required form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

from agent_envs.base import TextEnv

__all__ = ["ACTION_TAGS", "FALLBACK_CHARACTERS", "ParsedAction", "parse_action", "tagged"]

ACTION_TAGS = TextEnv.action_tags
"""The tag names of an environment that has no others."""

FALLBACK_CHARACTERS = 100
"""Characters from the end of a malformed response that the environment gets."""


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
    tag_names: Sequence[str] = ACTION_TAGS,
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
    * **With tags of several names** the action is the first pair outside thinking to be completed, with its tags;
      nothing after it changes that. A pair is the first opening tag and the first closing tag of the same name, without
      thinking between them. An empty pair counts as no action.
    * **Without action tags** the action is the whole stripped response, or with ``think`` the text after the last
      closed thinking block.
    * **The format is valid** if there is a non-empty action and, with ``think``, a properly opened block was closed
      before it. Without action tags the response must also have ended by itself (``finish_reason`` "stop"), because
      nothing else marks the end of the action.
    * **If the action is missing** (no usable pair; with ``think`` and without tags, no closed block) the environment
      gets the end of the response instead, at most ``FALLBACK_CHARACTERS`` on one line, so that the episode goes on.
      Tags of several names are left out of it, because the environment would read a pair that does not count.

    Args:
        response: decoded response.
        think: whether the run asks for a thinking block.
        action_tags: whether the run asks for the action in tags.
        thinking_opened: whether the prompt ended in ``<think>``, so that the response starts inside thinking.
        finish_reason: why the generation ended.
        tag_names: names of the tags, in lower case, as ``TextEnv.action_tags`` has them.
    """
    if action_tags and len(tag_names) > 1:
        return _first_of_several(response, think, thinking_opened, tuple(tag_names))
    thinking = thinking_opened
    thought_end: int | None = None
    opened_at: int | None = None
    pair: tuple[int, int] | None = None
    thought_before_pair = False
    for tag in _tags(tuple(tag_names)).finditer(response):
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


def tagged(action: str, tag_names: Sequence[str] = ACTION_TAGS) -> str:
    """Put an action in tags; of several names, that with which its text begins and which the tags then replace."""
    if len(tag_names) == 1:
        return f"<{tag_names[0]}>{action}</{tag_names[0]}>"
    name, _, words = action.partition(" ")
    return f"<{name}>{words}</{name}>" if name in tag_names else action


def _first_of_several(response: str, think: bool, thinking: bool, names: tuple[str, ...]) -> ParsedAction:
    thought = False
    opened: dict[str, re.Match[str]] = {}
    for tag in _tags(names).finditer(response):
        closing, name = bool(tag[1]), tag[2].lower()
        if name == "think":
            thought = closing and thinking
            thinking = not closing
            opened = {}
        elif thinking:
            continue
        elif not closing:
            opened.setdefault(name, tag)
        elif name in opened:
            if not response[opened[name].end() : tag.start()].strip():
                break
            return ParsedAction(response[opened[name].start() : tag.end()], thought or not think)
    return ParsedAction(_tail(_tags(names, think=False).sub(" ", response)), False)


@cache
def _tags(names: tuple[str, ...], think: bool = True) -> re.Pattern[str]:
    """Return a pattern of tags; fixed strings make a scan linear in the response.

    ASCII keeps case folding from matching look-alike letters.
    """
    return re.compile(rf"<(/?)({'|'.join(('think', *names) if think else names)})>", re.IGNORECASE | re.ASCII)


def _tail(response: str) -> str:
    return " ".join(response.rstrip()[-FALLBACK_CHARACTERS:].split())
