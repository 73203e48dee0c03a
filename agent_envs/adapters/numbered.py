"""What the environments of other projects have in common here: numbered tasks, a step limit, episodes to replay."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from agent_envs.base import NumberedTasks, PromptTemplate, Recording, Reset, StepResult, TextEnv
from agent_envs.errors import EnvError, UnknownTask

__all__ = ["PROMPT", "Counts", "NumberedEnv", "calling_module", "check_counts", "drawn"]

PROMPT = PromptTemplate(
    turn="""\
{% if task %}
{{ task }}

{% endif %}
{% for turn in history %}
Before: {{ turn.observation }}
Your action: {{ turn.action }}

{% endfor %}
{{ observation }}
{% if admissible_actions %}

Possible actions: {{ admissible_actions | join(", ") }}
{% endif %}

{% if think %}
Think first, between <think> and </think>.
{% endif %}
{% if action_tags %}
Write exactly one action between <action> and </action>.
{% else %}
Answer with exactly one action and nothing else.
{% endif %}
"""
)
"""Words the turns of an environment that brings no wording of its own."""

Counts = Mapping[str, int]
"""Split -> number of its tasks."""


def check_counts(counts: Counts, whose: str) -> None:
    """Raise ``ValueError`` unless there is a split and every split has a number of tasks."""
    if not counts or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in counts.values()):
        raise ValueError(f'the tasks of {whose} are {counts!r}; give a number for each split, as in {{"train": 1000}}.')


def calling_module() -> str:
    """Return the module that called the caller; a plugin is known by the module of its classes."""
    return str(sys._getframe(2).f_globals.get("__name__", __name__))


def drawn(number: int, seed: int) -> int:
    """Return the seed of what is drawn after the start of a task's episode, below 2^63."""
    # Unlike a sum, equal for no two pairs that occur.
    return (number * 0x9E3779B97F4A7C15 + seed * 0xBF58476D1CE4E5B9 + 1) % 2**63


class NumberedEnv(TextEnv):
    """Plays tasks that differ by a number, and truncates after ``max_steps`` steps.

    The splits follow each other: if ``train`` has 100 tasks and ``valid`` is next, ``valid-0`` has the number 100.
    Subclasses implement ``_counts``, ``_start`` and ``_act``.
    """

    can_snapshot = True

    def __init__(self, max_steps: int) -> None:
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
            raise ValueError(f"max_steps is {max_steps!r}; it must be a whole number of at least 1.")
        self.max_steps = max_steps
        self._steps = 0
        self._running: Recording | None = None

    def tasks(self, split: str) -> Sequence[str]:
        counts = self._counts()
        if split not in counts:
            raise UnknownTask(f"{self.name} has no split {split!r}; it has: {', '.join(counts)}.")
        return NumberedTasks(f"{split}-", counts[split])

    def reset(self, task: str, seed: int) -> Reset:
        split, place, number = self._found(task)
        self._running = None
        start = self._start(split, place, number, seed)
        self._running = Recording(task, seed)
        self._steps = 0
        return start

    def step(self, action: str) -> StepResult:
        if self._running is None:
            raise EnvError(f"{self.name}: no episode is running; call reset before step.")
        self._steps += 1
        try:
            result = self._act(action)
        except BaseException:
            self._running = None
            raise
        if self._steps >= self.max_steps and not (result.terminated or result.truncated):
            score = self.final_score()
            result = replace(result, truncated=True, score=result.score if score is None else score)
        ended = result.terminated or result.truncated
        self._running = None if ended else self._running.then(action)
        return result

    def snapshot(self) -> object:
        if self._running is None:
            raise EnvError(f"{self.name}: no episode is running; there is nothing to take a snapshot of.")
        return self._running

    def restore(self, state: object) -> None:
        if not isinstance(state, Recording):
            raise EnvError(f"{self.name}: this is not a snapshot; take one from an instance with the same options.")
        state.play(self)

    @abstractmethod
    def _counts(self) -> Counts:
        """Return the number of tasks of each split. Raises ``EnvError``."""

    @abstractmethod
    def _start(self, split: str, place: int, number: int, seed: int) -> Reset:
        """Start the task at ``place`` in its split, which has this number of all tasks. Raises ``EnvError``."""

    @abstractmethod
    def _act(self, action: str) -> StepResult:
        """Take one action of a running episode."""

    def _found(self, task: str) -> tuple[str, int, int]:
        """Return split, place in the split, and number of a task. Raises ``UnknownTask``."""
        counts = self._counts()
        for (split, size), end in zip(counts.items(), accumulate(counts.values()), strict=True):
            place = NumberedTasks(f"{split}-", size).number_of(task)
            if place is not None:
                return split, place, end - size + place
        example = next((split for split, size in counts.items() if size), "train")
        raise UnknownTask(f"{self.name} has no task {task!r}; its ids look like '{example}-0'.")
