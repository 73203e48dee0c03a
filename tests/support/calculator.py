"""A plugin: a pocket calculator that pays only for the right sum, so that a weak clone never earns anything."""

from __future__ import annotations

from agent_envs import NumberedTasks, PromptTemplate, Reset, StepResult, TextEnv, UnknownTask, register
from agent_envs.base import Expert

_DIGITS = 3
_KEYS = tuple(f"press {digit}" for digit in range(10))
_SIZES = {"train": 40, "valid": 10}


@register("calculator")
class Calculator(TextEnv):
    """Type the ``_DIGITS`` digits of the sum of two numbers; a wrong digit cannot be taken back."""

    splits = tuple(_SIZES)
    prompt = PromptTemplate(turn="{{ observation }} key :")
    max_steps = _DIGITS

    def tasks(self, split: str) -> NumberedTasks:
        if split not in _SIZES:
            raise UnknownTask(f"the calculator has no split {split!r}; it has: {', '.join(_SIZES)}.")
        return NumberedTasks(f"{split}-", _SIZES[split])

    def reset(self, task: str, seed: int) -> Reset:
        split, _, number = task.rpartition("-")
        first = 100 + 7 * int(number) + 300 * (split == "valid")
        self._terms, self._typed = (first, 211), ""
        return Reset(self._observe(), self._observe(), admissible_actions=_KEYS)

    def step(self, action: str) -> StepResult:
        admissible = action in _KEYS
        self._typed += action.split()[-1] if admissible else "0"
        right = self._typed == str(sum(self._terms))
        return StepResult(
            observation=self._observe(),
            state_key=self._observe(),
            reward=float(right),
            terminated=right,
            truncated=not right and len(self._typed) >= _DIGITS,
            admissible=admissible,
            success=right,
            score=float(right),
            admissible_actions=_KEYS,
        )

    def expert(self) -> Expert | None:
        return lambda: f"press {str(sum(self._terms))[len(self._typed)]}"

    def _observe(self) -> str:
        first, second = (" ".join(str(term)) for term in self._terms)
        return f"{first} plus {second} . typed {' '.join(self._typed) or 'nothing'} ."
