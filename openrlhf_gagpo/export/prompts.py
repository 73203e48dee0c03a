"""The prompt of a step as messages again, from its recorded token ids.

A chat template turns messages into text with fixed text between them. That fixed text is found by rendering markers
instead of messages; what stands between it in a prompt is the content of the messages. The result is checked by
rendering it again, except in a transcript, which holds the answers as they were sampled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.rollout.types import Message, Step

__all__ = ["PromptReader"]

_MARKER = "\ue000{}\ue001"
"""Characters for private use, which no template and hardly any text contains."""
_MARKED = re.compile("\ue000(\\d+)\ue001")


class PromptReader:
    """Reads the prompts of one run.

    Args:
        tokenizer: the tokenizer of the model that played.
        chat_template: ``auto`` or ``none`` as the run had it; "" if that is not known, so that a prompt in which the
            chat template is not found counts as plain text.
        think: what the chat template got as ``enable_thinking``; None if that is not known.
    """

    def __init__(self, tokenizer: Any, *, chat_template: str, think: bool | None) -> None:
        self._tokenizer = tokenizer
        self._chat = chat_template != "none" and bool(tokenizer.chat_template)
        self._maybe_plain = not chat_template
        self._thinks = (False, True) if think is None else (think,)
        self._pattern = lru_cache(maxsize=256)(self._find_pattern)

    @classmethod
    def load(cls, names: Sequence[str], *, chat_template: str, think: bool | None) -> PromptReader:
        """Load the first tokenizer that is on this machine. Raises ``ConfigError`` if there is none."""
        from openrlhf_gagpo.config.models import cached
        from openrlhf_gagpo.policies.folder import load_tokenizer

        for name in names:
            if any(Path(name).glob("tokenizer*")) or (not Path(name).exists() and cached(name)):
                return cls(load_tokenizer(name, "tokenizer"), chat_template=chat_template, think=think)
        looked = f", and there is no tokenizer at {' or '.join(names)}" if names else ""
        raise ConfigError(
            f"the prompts are recorded as token ids{looked}; name the folder of the model that played with --tokenizer"
        )

    def messages(self, step: Step) -> list[Message]:
        """Return the messages of a step's prompt; without a chat template all of its text is the user's.

        Raises:
            ConfigError: the prompt does not have the form of the chat template.
        """
        text: str = self._tokenizer.decode(
            step.prompt_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        # A template may word an earlier answer otherwise than it was sampled, for instance without its thoughts.
        in_transcript = step.sequence < step.index
        if self._chat:
            for think in self._thinks:
                for roles in _conversations(step.index - step.history_dropped):
                    found = self._split(text, roles, think, exact=not in_transcript)
                    if found is not None:
                        return found
            if not self._maybe_plain:
                raise ConfigError(
                    "a recorded prompt does not have the form of the tokenizer's chat template; name the folder of the "
                    "model that played with --tokenizer"
                )
        return [{"role": "user", "content": text}]

    def _split(self, text: str, roles: tuple[str, ...], think: bool, *, exact: bool) -> list[Message] | None:
        """Return the messages between the template's fixed texts, or None.

        Args:
            exact: whether the template has to make the same text of them again.
        """
        pattern = self._pattern(roles, think)
        match = pattern.fullmatch(text) if pattern else None
        if match is None:
            return None
        found: list[Message] = [
            {"role": role, "content": content} for role, content in zip(roles, match.groups(), strict=True)
        ]
        return found if not exact or self._render(found, think) == text else None

    def _find_pattern(self, roles: tuple[str, ...], think: bool) -> re.Pattern[str] | None:
        """Return the form of a prompt with messages in these roles; None if the template refuses or drops one."""
        marked: list[Message] = [{"role": role, "content": _MARKER.format(number)} for number, role in enumerate(roles)]
        try:
            text = self._render(marked, think)
        except jinja2.TemplateError:
            return None
        fixed = _MARKED.split(text)
        # Without anything between two messages nobody can tell where one ends.
        if fixed[1::2] != [str(number) for number in range(len(roles))] or not all(fixed[2:-1:2]):
            return None
        return re.compile("(.*?)".join(map(re.escape, fixed[::2])), re.DOTALL)

    def _render(self, messages: list[Message], think: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=think
        )
        return text


def _conversations(exchanges: int) -> Iterator[tuple[str, ...]]:
    """Yield the roles that a prompt may have: a conversation with earlier exchanges, then one without."""
    for earlier in dict.fromkeys((max(exchanges, 0), 0)):
        talk = ("user", *("assistant", "user") * earlier)
        yield ("system", *talk)
        yield talk
