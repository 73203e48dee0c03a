"""A stand-in environment with an expert, small enough to clone in a second."""

from __future__ import annotations

from agent_envs.base import Expert, PromptTemplate, Reset, StepResult, TextEnv


class Corridor(TextEnv):
    """Walk right ``length`` times; the task id is the length."""

    name = "corridor"
    splits = ("train", "test")
    prompt = PromptTemplate(
        turn="{% for h in history %}{{ h.step }} {{ h.action }} ; {% endfor %}{{ observation }} now"
        "{% for a in admissible_actions %} [{{ a }}]{% endfor %} :"
    )
    max_steps = 8

    def tasks(self, split: str) -> list[str]:
        return ["2", "3", "4"] if split == "train" else []

    def reset(self, task: str, seed: int) -> Reset:
        self._left, self._taken = int(task), 0
        return Reset(f"at {self._left}", str(self._left), admissible_actions=("go left", "go right"))

    def step(self, action: str) -> StepResult:
        self._taken += 1
        self._left += {"go right": -1, "go left": 1}[action]
        done = self._left == 0
        return StepResult(
            f"at {self._left}",
            str(self._left),
            float(done),
            done,
            not done and self._taken == self.max_steps,
            success=done,
            admissible_actions=("go left", "go right"),
        )

    def expert(self) -> Expert | None:
        return lambda: "go right"
