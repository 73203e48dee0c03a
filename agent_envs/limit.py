"""Wrappers with limits that every environment can have: the steps of an episode, the length of an observation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent_envs.base import ExactModel, Expert, Reset, StepResult, TextEnv
from agent_envs.errors import EnvError

__all__ = ["ObservationLimit", "StepLimit"]


class _Wrapper(TextEnv):
    """An environment with the behaviour of ``env``, which subclasses change in some method."""

    def __init__(self, env: TextEnv) -> None:
        self.env = env
        self.name = env.name
        self.splits = env.splits
        self.prompt = env.prompt
        self.record = env.record
        self.placeholders = env.placeholders
        self.can_snapshot = env.can_snapshot
        self.waits = env.waits
        self.max_steps = env.max_steps

    def tasks(self, split: str) -> Sequence[str]:
        return self.env.tasks(split)

    def reset(self, task: str, seed: int) -> Reset:
        return self.env.reset(task, seed)

    def step(self, action: str) -> StepResult:
        return self.env.step(action)

    async def astep(self, action: str) -> StepResult:
        return await self.env.astep(action)

    def final_score(self) -> float | None:
        return self.env.final_score()

    def task_payload(self, task: str) -> Mapping[str, Any]:
        return self.env.task_payload(task)

    def expert(self) -> Expert | None:
        return self.env.expert()

    def snapshot(self) -> object:
        return self.env.snapshot()

    def restore(self, state: object) -> None:
        self.env.restore(state)

    def model(self) -> ExactModel | None:
        return self.env.model()

    def describe_tasks(self, tasks: Mapping[str, Sequence[str]]) -> Iterable[str]:
        return self.env.describe_tasks(tasks)

    def close(self) -> None:
        self.env.close()


class StepLimit(_Wrapper):
    """Wraps ``env`` and truncates its episodes after ``max_steps`` steps, or after its own limit if that is smaller.

    The last result of an episode that is cut off has the environment's ``final_score``. Raises ``ValueError`` for a
    limit that is not a whole number of at least 1.
    """

    def __init__(self, env: TextEnv, max_steps: int) -> None:
        super().__init__(env)
        self.max_steps = min(_whole("max_steps", max_steps), env.max_steps)
        self._steps_left = 0
        self._cut_off = False

    def reset(self, task: str, seed: int) -> Reset:
        start = self.env.reset(task, seed)
        self._steps_left = self.max_steps
        self._cut_off = False
        return start

    def step(self, action: str) -> StepResult:
        self._refuse_after_the_end()
        return self._limited(self.env.step(action))

    async def astep(self, action: str) -> StepResult:
        self._refuse_after_the_end()
        return self._limited(await self.env.astep(action))

    def _refuse_after_the_end(self) -> None:
        # The environment itself refuses a step after any other end.
        if self._cut_off:
            raise EnvError(f"{self.name}: the episode was truncated after {self.max_steps} steps; call reset first.")

    def _limited(self, result: StepResult) -> StepResult:
        self._steps_left -= 1
        if self._steps_left > 0 or result.terminated or result.truncated:
            return result
        score = self.env.final_score()
        self._cut_off = True
        return replace(result, truncated=True, score=result.score if score is None else score)

    def snapshot(self) -> object:
        self._refuse_after_the_end()
        return self._steps_left, self.env.snapshot()

    def restore(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 2:
            raise EnvError(f"{self.name}: this is not a snapshot under a step limit; take one from such an instance.")
        steps_left, inner = state
        self.env.restore(inner)
        self._steps_left = steps_left
        self._cut_off = False


class ObservationLimit(_Wrapper):
    """Wraps ``env`` and shows at most the first ``max_observation`` characters of its observations.

    A shortened observation says how many characters are missing. State keys, and with them what is compared, stay
    whole. Since the rules for exact values show whole observations, there are none. Raises ``ValueError`` for a limit
    that is not a whole number of at least 1.
    """

    def __init__(self, env: TextEnv, max_observation: int) -> None:
        super().__init__(env)
        self._most = _whole("max_observation", max_observation)

    def reset(self, task: str, seed: int) -> Reset:
        start = self.env.reset(task, seed)
        return replace(start, observation=self._cut(start.observation))

    def step(self, action: str) -> StepResult:
        return self._shortened(self.env.step(action))

    async def astep(self, action: str) -> StepResult:
        return self._shortened(await self.env.astep(action))

    def model(self) -> ExactModel | None:
        return None

    def _shortened(self, result: StepResult) -> StepResult:
        return replace(result, observation=self._cut(result.observation))

    def _cut(self, text: str) -> str:
        missing = len(text) - self._most
        return text if missing <= 0 else f"{text[: self._most]} ... ({missing} more characters)"


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    return value
