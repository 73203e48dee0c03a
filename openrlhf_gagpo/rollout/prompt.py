"""Prompts: an environment's template and an episode's history become the token ids of one turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agent_envs.base import PromptTemplate
from openrlhf_gagpo.errors import PromptTemplateError, PromptTooLong
from openrlhf_gagpo.rollout.types import AnswerTokens, Exchange, HistoryEntry, Message, Prompt

__all__ = [
    "ChatTemplate",
    "HistoryEntry",
    "PromptBuilder",
    "ResolvedPrompt",
    "TemplatePart",
    "TurnPrompts",
    "template_part",
]


ChatTemplate = Literal["auto", "none"]
TemplatePart = Callable[[Mapping[str, object]], str]
"""Renders one part of a template from its variables."""

_ENGINE = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class TurnPrompts(Protocol):
    """Makes the prompt of every turn of an episode; the arguments are those of ``PromptBuilder.build``."""

    def build(
        self,
        task: str,
        history: Sequence[HistoryEntry],
        observation: str,
        admissible_actions: Sequence[str],
        step: int,
        previous: Exchange | None = None,
    ) -> Prompt: ...


class ResolvedPrompt(NamedTuple):
    """Everything that determines the wording of a run's prompts, for its run folder."""

    text: str
    sha256: str
    """Hex digest of ``text`` in UTF-8."""

    @classmethod
    def of(cls, sections: Mapping[str, str]) -> ResolvedPrompt:
        """Return titled sections as one text."""
        text = "".join(f"=== {title} ===\n{body}\n" for title, body in sections.items())
        return cls(text, hashlib.sha256(text.encode()).hexdigest())

    def extended(self, title: str, body: str) -> ResolvedPrompt:
        """Return this with a further section."""
        text = self.text + ResolvedPrompt.of({title: body}).text
        return ResolvedPrompt(text, hashlib.sha256(text.encode()).hexdigest())


class PromptBuilder:
    """Words, encodes and fits the prompts of one run.

    Args:
        template: Jinja2 sources. ``turn`` can use the variables that ``agent_envs.base.PromptTemplate`` lists;
            ``system`` is rendered once and can use only ``think`` and ``action_tags``. Both are rendered in a sandbox,
            an unknown variable is an error, and a line with only a block tag leaves no blank line behind.
        tokenizer: a transformers fast tokenizer, or anything with its ``encode``, ``apply_chat_template`` and
            ``chat_template``.
        history_length: number of latest turns that a prompt may show; 0 shows none.
        think: whether the run asks for a thinking block. Chat templates get it as ``enable_thinking``, so that models
            with a native thinking mode follow the run's choice.
        action_tags: whether the run asks for the action inside tags.
        list_actions: whether the template gets ``admissible_actions``.
        chat_template: "auto" uses the tokenizer's chat template if it has one. "none" never does; the prompt is then
            the plain text (system, blank line, turn) and no special token is added.
        max_prompt_tokens: limit on the prompt, in tokens.

    Raises:
        PromptTemplateError: a template has a syntax error or uses an unknown variable.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        template: PromptTemplate,
        tokenizer: Any,
        *,
        history_length: int,
        think: bool,
        action_tags: bool,
        list_actions: bool,
        chat_template: ChatTemplate = "auto",
        max_prompt_tokens: int,
    ) -> None:
        if history_length < 0:
            raise ValueError(f"history_length is {history_length}: use 0 (no history) or more")
        if max_prompt_tokens < 1:
            raise ValueError(f"max_prompt_tokens is {max_prompt_tokens}: use 1 or more")
        if chat_template not in ("auto", "none"):
            raise ValueError(f"chat_template is {chat_template!r}: use 'auto' or 'none'")
        self._template = template
        self._tokenizer = tokenizer
        # Members of a rollout group visit the same states, so most prompts of an iteration are needed several times.
        self._worded = lru_cache(maxsize=1024)(self._word)
        self._encode = lru_cache(maxsize=1024)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        self._history_length = history_length
        self._list_actions = list_actions
        self._max_prompt_tokens = max_prompt_tokens
        self._format = {"think": think, "action_tags": action_tags}
        self._system = template_part(template.system, "system")(self._format).strip()
        self._turn = template_part(template.turn, "turn")
        self._shows_step = "step" in jinja2.meta.find_undeclared_variables(_ENGINE.parse(template.turn))
        self._answer = template_part(template.answer, "answer")
        self._check_turn()
        self._chat = chat_template == "auto" and bool(getattr(tokenizer, "chat_template", None))
        self._system_role = self._chat and bool(self._system) and self._takes_system_role()

    def build(
        self,
        task: str,
        history: Sequence[HistoryEntry],
        observation: str,
        admissible_actions: Sequence[str],
        step: int,
        previous: Exchange | None = None,
    ) -> Prompt:
        """Build the prompt of turn ``step`` (0-based); ``history`` holds all earlier turns, oldest first.

        ``previous`` is the last of them in tokens, which this builder does not need: it words every turn anew.

        Equal arguments may give the same object again, so what it holds must not be changed.

        If the whole window does not fit, as few of its oldest entries as possible are left out. Their number is found
        by bisection, so a long history needs a logarithmic number of encodings.

        Raises:
            PromptTooLong: it does not fit even without history.
            PromptTemplateError: the template cannot be rendered.
        """
        window = tuple(history[-self._history_length :]) if self._history_length else ()
        actions = tuple(self.offered(admissible_actions))
        # A step that the template does not show must not keep equal prompts apart.
        turn = (task, observation, actions, step if self._shows_step else 0)
        attempt = self._worded(*turn, window, 0)
        if len(attempt.token_ids) <= self._max_prompt_tokens:
            return attempt
        best: Prompt | None = None
        fewest, most = 1, len(window)
        while fewest <= most:
            drop = (fewest + most) // 2
            attempt = self._worded(*turn, window, drop)
            if len(attempt.token_ids) <= self._max_prompt_tokens:
                best, most = attempt, drop - 1
            else:
                fewest = drop + 1
        if best is None:
            # Every attempt failed, so the last one was the one without history.
            raise PromptTooLong(len(attempt.token_ids), self._max_prompt_tokens)
        return best

    def offered(self, admissible_actions: Sequence[str]) -> list[str]:
        """Return the actions that a prompt lists: all of them or, in a run that lists none, none."""
        return list(admissible_actions) if self._list_actions else []

    def spoken(self, answer: str, *, thinking_opened: bool) -> AnswerTokens:
        """Encode ``answer`` as the policy would give it, for the ids of any prompt to precede it.

        It is encoded in one piece with the words around it. Tokens that hold a character of the answer count as its.

        Args:
            thinking_opened: whether the prompt ends with an opened thinking block.

        Raises:
            PromptTemplateError: the environment's template has no words for an answer, or does not show it.
        """
        text = self._answer(self._format | {"answer": answer})
        if thinking_opened:
            text = text.removeprefix("<think>")
        start = text.rfind(answer)
        if not answer or start < 0:
            raise PromptTemplateError(f"the answer part of the prompt template does not show the answer {answer!r}")
        end = start + len(answer)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [place for place, (low, high) in enumerate(encoded["offset_mapping"]) if low < end and high > start]
        return AnswerTokens(list(encoded["input_ids"][: inside[-1] + 1]), inside[0])

    def render(self, messages: Sequence[Message]) -> Prompt:
        """Encode a conversation as it is, with the run's chat template.

        Raises:
            PromptTooLong: it does not fit.
        """
        prompt = self._encoded(list(messages), 0)
        if len(prompt.token_ids) > self._max_prompt_tokens:
            raise PromptTooLong(len(prompt.token_ids), self._max_prompt_tokens)
        return prompt

    def resolved(self) -> ResolvedPrompt:
        """Return the template sources and the settings as readable text, with its hash."""
        settings = {
            **self._format,
            "history_length": self._history_length,
            "list_actions": self._list_actions,
            "max_prompt_tokens": self._max_prompt_tokens,
        }
        chat = self._tokenizer.chat_template if self._chat else "(none)"
        sections = {
            "settings": "\n".join(f"{name}: {value}" for name, value in settings.items()),
            "system": self._template.system,
            "turn": self._template.turn,
            "chat template": chat,
        }
        return ResolvedPrompt.of(sections)

    def _word(
        self,
        task: str,
        observation: str,
        admissible_actions: tuple[str, ...],
        step: int,
        window: tuple[HistoryEntry, ...],
        drop: int,
    ) -> Prompt:
        """Word and encode a prompt without the ``drop`` oldest entries of the window."""
        variables: dict[str, object] = {
            "task": task,
            "observation": observation,
            "admissible_actions": list(admissible_actions),
            "step": step,
            "history": list(window[drop:]),
            **self._format,
        }
        turn = self._turn(variables)
        return self._encoded(self._messages(turn), drop)

    def _encoded(self, messages: list[Message], drop: int) -> Prompt:
        text = self._apply(self._for_template(messages)) if self._chat else _joined(messages)
        return Prompt(list(self._encode(text)), text, messages, drop)

    def _messages(self, turn: str) -> list[Message]:
        system: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, {"role": "user", "content": turn}]

    def _for_template(self, messages: list[Message]) -> list[Message]:
        """Return messages in roles that the chat template supports."""
        if self._system_role or messages[0]["role"] != "system":
            return messages
        return [{"role": "user", "content": _joined(messages[:2])}, *messages[2:]]

    def _apply(self, messages: list[Message]) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=self._format["think"]
        )
        return text

    def _takes_system_role(self) -> bool:
        """Return whether the chat template supports system messages; some refuse them or silently leave them out."""
        marker = "system-role-probe"
        try:
            text = self._apply([{"role": "system", "content": marker}, {"role": "user", "content": "turn"}])
        except jinja2.TemplateError:
            return False
        return marker in text

    def _check_turn(self) -> None:
        """Render a first and a later turn, so that a broken template is reported before anything is loaded."""
        action = ["action"] if self._list_actions else []
        variables = {"task": "task", "observation": "observation", "admissible_actions": action, **self._format}
        self._turn({**variables, "history": [], "step": 0})
        if self._history_length:
            self._turn({**variables, "history": [HistoryEntry(0, "seen", "done")], "step": 1})


def _joined(messages: Sequence[Message]) -> str:
    return "\n\n".join(message["content"] for message in messages)


def template_part(source: str, part: str) -> TemplatePart:
    """Return a function that renders one part of a template from its variables.

    Raises:
        PromptTemplateError: the source has a syntax error, which names the ``part``; so do those of the function.
    """
    try:
        template = _ENGINE.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise PromptTemplateError(f"the {part} prompt template, line {error.lineno}: {error.message}") from error

    def render(variables: Mapping[str, object]) -> str:
        try:
            return template.render(variables)
        except Exception as error:  # the expressions of a template may raise anything
            raise PromptTemplateError(f"the {part} prompt template cannot be rendered: {error}") from error

    return render
