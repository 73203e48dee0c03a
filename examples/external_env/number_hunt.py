"""Find a hidden number: an environment outside the package.

One file is enough: subclass ``TextEnv``, decorate the class with ``@register``, and load the file as a plugin
(``agent_envs.load_plugin("number_hunt.py")``, or the plugin option of a command).
"""

from __future__ import annotations

import random

from agent_envs import EnvError, NumberedTasks, PromptTemplate, Reset, StepResult, TextEnv, UnknownTask, register
from agent_envs.base import Expert

SPLIT_SIZES = {"train": 200, "valid": 50}


@register("number-hunt")
class NumberHunt(TextEnv):
    """Guess a number between 1 and ``limit``; each guess is answered with "higher" or "lower".

    Unlike in the vault, the goal is hidden, so earlier answers matter; the observation contains the remaining range.
    """

    splits = tuple(SPLIT_SIZES)
    prompt = PromptTemplate(
        system="You play a guessing game. Guesses look like: guess 12",
        turn="""\
{{ task }} {{ observation }}
{% if think %}
Think between <think> and </think> first.
{% endif %}
{% if action_tags %}
Put your guess between <action> and </action>.
{% endif %}
""",
    )

    def __init__(self, limit: int = 32, max_steps: int = 8) -> None:
        if limit < 2 or max_steps < 1:
            raise ValueError("number-hunt: limit must be at least 2 and max_steps at least 1.")
        self.max_steps = max_steps
        self._limit = limit
        self._running = False

    def tasks(self, split: str) -> NumberedTasks:
        if split not in SPLIT_SIZES:
            raise UnknownTask(f"number-hunt has no split {split!r}; it has: {', '.join(SPLIT_SIZES)}.")
        return NumberedTasks(f"{split}-", SPLIT_SIZES[split])

    def reset(self, task: str, seed: int) -> Reset:
        if not any(task in self.tasks(split) for split in SPLIT_SIZES):
            raise UnknownTask(f"number-hunt has no task {task!r}; its ids look like 'train-0'.")
        # The seed is a string, because Python's own hash of a string differs between processes.
        self._secret = random.Random(f"{task} {seed}").randint(1, self._limit)
        self._low, self._high = 1, self._limit
        self._steps = 0
        self._running = True
        observation = self._observe()
        return Reset(observation, observation, task="Find the hidden number.")

    def step(self, action: str) -> StepResult:
        if not self._running:
            raise EnvError("number-hunt: no episode is running; call reset before step.")
        self._steps += 1
        guess = self._read(action)
        if guess is not None and guess < self._secret:
            self._low = max(self._low, guess + 1)
        elif guess is not None and guess > self._secret:
            self._high = min(self._high, guess - 1)
        found = guess == self._secret
        truncated = not found and self._steps >= self.max_steps
        self._running = not (found or truncated)
        observation = f"It was {guess}." if found else self._observe()
        return StepResult(
            observation=observation,
            state_key=observation,
            reward=float(found),
            terminated=found,
            truncated=truncated,
            admissible=guess is not None,
            success=found,
            score=float(found),
        )

    def expert(self) -> Expert | None:
        """Return an expert that halves the remaining range."""
        return lambda: f"guess {(self._low + self._high) // 2}"

    def _observe(self) -> str:
        return f"It is between {self._low} and {self._high}."

    def _read(self, action: str) -> int | None:
        words = action.split() if len(action) < 100 else []
        if len(words) != 2 or words[0].lower() != "guess" or not words[1].isdecimal():
            return None
        return int(words[1])
