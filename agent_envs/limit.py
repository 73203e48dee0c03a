"""A wrapper that limits the steps of environments without an option for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from agent_envs.base import ExactModel, Expert, Reset, StepResult, TextEnv
from agent_envs.errors import EnvError

__all__ = ["StepLimit"]


class StepLimit(TextEnv):
    """Wraps ``env`` and truncates its episodes after ``max_steps`` steps, or after its own limit if that is smaller.

    Raises ``ValueError`` for a limit that is not a whole number of at least 1.
    """

    def __init__(self, env: TextEnv, max_steps: int) -> None:
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
            raise ValueError(f"max_steps is {max_steps!r}; it must be a whole number of at least 1.")
        self.env = env
        self.name = env.name
        self.splits = env.splits
        self.prompt = env.prompt
        self.record = env.record
        self.placeholders = env.placeholders
        self.can_snapshot = env.can_snapshot
        self.waits = env.waits
        self.max_steps = min(max_steps, env.max_steps)
        self._steps_left = 0
        self._cut_off = False

    def tasks(self, split: str) -> Sequence[str]:
        return self.env.tasks(split)

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
        self._cut_off = True
        return replace(result, truncated=True)

    def expert(self) -> Expert | None:
        return self.env.expert()

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

    def model(self) -> ExactModel | None:
        return self.env.model()

    def describe_tasks(self, tasks: Mapping[str, Sequence[str]]) -> Iterable[str]:
        return self.env.describe_tasks(tasks)

    def close(self) -> None:
        self.env.close()
