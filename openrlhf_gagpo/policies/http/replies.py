"""Reading of what an OpenAI-compatible endpoint answers, which may be anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from openrlhf_gagpo.rollout.types import FinishReason, Usage

__all__ = ["BadReply", "Refusal", "completion_of", "error_text", "is_context_error", "wait_asked"]

_TOO_LONG = ("context_length_exceeded", "maximum context length", "longer than the maximum model length")
_SHOWN = 200
"""Characters of a reply that an error quotes."""


class BadReply(Exception):
    """A failure after which the same request may succeed."""

    def __init__(self, text: str, *, wait: float | None = None, usage: Usage | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.wait = wait
        """Seconds that the endpoint asked to wait; None if it did not say."""
        self.usage = usage or Usage()
        """Tokens that were counted for the reply all the same."""


class Refusal(Exception):
    """A failure of this one request, which would fail again."""

    def __init__(self, text: str, *, too_long: bool) -> None:
        super().__init__(text)
        self.text = text
        self.too_long = too_long
        """Whether the prompt exceeds the context of the model."""


def completion_of(text: str) -> tuple[str, FinishReason, Usage]:
    """Return the response of the reply ``text``, why it ended, and the tokens that it cost.

    Both kinds of reply are read. A chat message without content, whose tokens all went into hidden reasoning, is an
    empty response if the token limit ended it.

    Raises:
        BadReply: it is not JSON, or lacks what such a reply has.
    """
    try:
        body = json.loads(text)
    except ValueError:
        raise BadReply("the endpoint's reply is not valid JSON") from None
    usage = _usage(body)
    choice = _first(body.get("choices") if isinstance(body, dict) else None)
    if choice is None:
        raise BadReply("the endpoint's reply has no choices", usage=usage)
    cut = choice.get("finish_reason") == "length"
    message = choice.get("message")
    response = message.get("content") if isinstance(message, dict) else choice.get("text")
    if response is None and cut and isinstance(message, dict):
        response = ""
    if not isinstance(response, str):
        raise BadReply("the endpoint's reply has no text in its first choice", usage=usage)
    return response, "length" if cut else "stop", usage


def error_text(text: str) -> str:
    """Return the message of an error reply, or the start of its text, on one line."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    words = " ".join((message if isinstance(message, str) else text).split())
    return words[:_SHOWN].rstrip(".") or "nothing"


def is_context_error(text: str) -> bool:
    """Return whether an error reply says that the prompt is longer than the model's context."""
    return any(words in text for words in _TOO_LONG)


def wait_asked(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which holds seconds or a date; None without a usable one."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    # A NaN or an infinite wait is no wait that anybody meant.
    return max(0.0, seconds) if seconds < 1e9 else None


def _first(choices: Any) -> dict[str, Any] | None:
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _usage(body: Any) -> Usage:
    given = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(given, dict):
        return Usage()
    details = given.get("prompt_tokens_details")
    return Usage(
        0,
        _count(given.get("prompt_tokens")),
        _count(given.get("completion_tokens")),
        _count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
