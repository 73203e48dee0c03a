"""Prompts that grow token by token: one conversation per episode, in which nothing sampled is encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jinja2

from agent_envs.base import PromptTemplate
from openrlhf_gagpo.errors import PromptTemplateError, PromptTooLong
from openrlhf_gagpo.rollout.prompt import PromptBuilder, ResolvedPrompt, template_part
from openrlhf_gagpo.rollout.types import Exchange, HistoryEntry, Message, Prompt, ShownTurn

__all__ = ["Overflow", "TranscriptBuilder"]

Overflow = Literal["end", "drop"]

_ANSWER, _TURN = "\ue000answer\ue001", "\ue000turn\ue001"
"""Placeholders of characters for private use, which no chat template contains."""
_BEFORE = "x"
"""Any text that no tokenizer merges with a line break or a marker."""
_ROOM = 0.5
"""Share of the prompt limit that a sequence may take at its start, so that it has room to grow."""


class _Markers(NamedTuple):
    """What the chat template puts around a turn of the environment that follows an answer."""

    before: str
    """From the end of the answer, whose end-of-turn marker comes first, to the turn."""
    after: str
    """From the turn to where the next answer begins."""


class TranscriptBuilder(PromptBuilder):
    """Words the turns of one conversation per episode.

    The first prompt is the one that ``PromptBuilder`` gives a first turn. Each later one is, in token ids, the prompt
    before it, what was sampled after that, and the environment's new turn: the template's ``later`` part between the
    chat template's own markers. The end-of-turn marker of the answer comes with the environment's ids, unless it was
    sampled. Without a chat template the new turn follows on a line of its own.

    Args:
        overflow: what happens when a prompt would exceed its limit. "end": ``PromptTooLong`` ends the episode. "drop":
            the oldest turns are left out, and a new sequence begins with the oldest turn that is kept, worded as a
            first one, and the tokens since then. As many of the latest turns are kept as fit into half of the limit,
            at least the new one.
        template, tokenizer, arguments: as for ``PromptBuilder``. A transcript shows all turns and so has no window.

    Raises:
        PromptTemplateError: also if the chat template does not keep what follows an answer in its place.
    """

    def __init__(
        self, template: PromptTemplate, tokenizer: Any, *, overflow: Overflow = "end", **arguments: Any
    ) -> None:
        super().__init__(template, tokenizer, **(arguments | {"history_length": 0}))
        if overflow not in ("end", "drop"):
            raise ValueError(f"overflow is {overflow!r}: use 'end' or 'drop'")
        self._overflow = overflow
        self._later_source = template.later
        self._later = template_part(template.later, "later")
        self._word_later(ShownTurn(1, "observation", ("action",) if self._list_actions else ()), "task")
        self._markers = self._find_markers() if self._chat else _Markers("\n", "")

    def build(
        self,
        task: str,
        history: Sequence[HistoryEntry],
        observation: str,
        admissible_actions: Sequence[str],
        step: int,
        previous: Exchange | None = None,
    ) -> Prompt:
        """Build the prompt of turn ``step``, which goes on from the tokens of ``previous``.

        Raises:
            PromptTooLong: it does not fit; with overflow "drop", not even without the other turns.
            PromptTemplateError: the template cannot be rendered.
            ValueError: there are earlier turns and ``previous`` is missing.
        """
        now = ShownTurn(step, observation, tuple(self.offered(admissible_actions)))
        if previous is None:
            if history:
                raise ValueError("a transcript goes on from the tokens of the turn before; give previous")
            return self._open(task, now, 0)
        prompt = self._extend(task, now, previous)
        if len(prompt.token_ids) <= self._max_prompt_tokens:
            return prompt
        if self._overflow == "end":
            raise PromptTooLong(len(prompt.token_ids), self._max_prompt_tokens)
        return self._restart(task, prompt)

    def resolved(self) -> ResolvedPrompt:
        """Return the template sources and the settings as readable text, with its hash."""
        resolved = super().resolved().extended("later turns", self._later_source)
        return resolved.extended("context", f"transcript, overflow: {self._overflow}")

    def _open(self, task: str, turn: ShownTurn, sequence: int) -> Prompt:
        """Return the prompt with which a sequence begins."""
        first = super().build(task, (), turn.observation, turn.admissible_actions, turn.step)
        ends = (len(first.token_ids), len(first.text), len(first.messages))
        return replace(first, history_dropped=turn.step, sequence=sequence, turns=(turn._replace(ends=ends),))

    def _extend(self, task: str, now: ShownTurn, previous: Exchange) -> Prompt:
        before, answer = previous.prompt, previous.completion.token_ids
        if not answer:
            # A policy that produces only text has no ids of its own to keep.
            answer = list(self._encode(previous.response))
        content = self._word_later(now, task)
        added = f"{self._markers.before}{content}{self._markers.after}"
        ids = self._encode_after(added)
        if self._chat and answer and ids and answer[-1] == ids[0] and ids[0] in self._end_markers:
            del ids[0]
        token_ids = [*before.token_ids, *answer, *ids]
        text = f"{before.text}{previous.response}{added}"
        messages: list[Message] = [
            *before.messages,
            {"role": "assistant", "content": previous.response},
            {"role": "user", "content": content},
        ]
        turns = (*before.turns, now._replace(ends=(len(token_ids), len(text), len(messages))))
        return Prompt(token_ids, text, messages, before.history_dropped, before.sequence or 0, turns)

    def _encode_after(self, text: str) -> list[int]:
        """Encode text that follows other text, without what some tokenizers put before the first word of a text."""
        before, both = self._encode(_BEFORE), self._encode(_BEFORE + text)
        return list(both[len(before) :] if both[: len(before)] == before else self._encode(text))

    def _word_later(self, turn: ShownTurn, task: str) -> str:
        return self._later(
            {
                "task": task,
                "observation": turn.observation,
                "admissible_actions": list(turn.admissible_actions),
                "step": turn.step,
                **self._format,
            }
        )

    def _restart(self, task: str, full: Prompt) -> Prompt:
        """Return a prompt that fits, of a new sequence, which begins with a later turn than ``full`` does."""
        number = (full.sequence or 0) + 1
        *earlier, now = full.turns
        kept = self._open(task, now, number)
        for place, turn in reversed(list(enumerate(earlier))):
            try:
                opening = self._open(task, turn, number)
            except PromptTooLong:
                break
            longer = _moved(opening, full, turn, full.turns[place + 1 :])
            if len(longer.token_ids) > _ROOM * self._max_prompt_tokens:
                break
            kept = longer
        return kept

    @cached_property
    def _end_markers(self) -> frozenset[int]:
        """Tokens with which a model may end its own turn."""
        ids = [getattr(self._tokenizer, "eos_token_id", None), *getattr(self._tokenizer, "all_special_ids", ())]
        return frozenset(token for token in ids if token is not None)

    def _find_markers(self) -> _Markers:
        try:
            text = self._apply(
                [
                    {"role": "user", "content": "turn"},
                    {"role": "assistant", "content": _ANSWER},
                    {"role": "user", "content": _TURN},
                ]
            )
        except jinja2.TemplateError as error:
            raise PromptTemplateError(f"the chat template cannot word a second turn: {error}") from error
        before, answered, rest = text.partition(_ANSWER)
        between, shown, after = rest.partition(_TURN)
        if not (answered and shown) or _ANSWER in rest or _TURN in before + after:
            raise PromptTemplateError(
                "the chat template does not repeat an answer and the turn after it in their order; use "
                "--rollout.chat_template none or --rollout.context window"
            )
        return _Markers(between, after)


def _moved(opening: Prompt, full: Prompt, first: ShownTurn, later: Sequence[ShownTurn]) -> Prompt:
    """Return what ``full`` holds after the turn ``first``, after ``opening`` instead."""
    ids, text, messages = first.ends
    new = opening.turns[0].ends
    turns = [
        turn._replace(
            ends=(turn.ends[0] - ids + new[0], turn.ends[1] - text + new[1], turn.ends[2] - messages + new[2])
        )
        for turn in later
    ]
    return Prompt(
        opening.token_ids + full.token_ids[ids:],
        opening.text + full.text[text:],
        opening.messages + full.messages[messages:],
        opening.history_dropped,
        opening.sequence,
        (*opening.turns, *turns),
    )
