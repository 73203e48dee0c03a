"""A plugin with doors whose passwords are only told after the attempt."""

from __future__ import annotations

from agent_envs import PromptTemplate, Reset, StepResult, TextEnv, register


@register("locked-doors")
class LockedDoors(TextEnv):
    """Say the password of the door within two steps; it is announced when it is too late."""

    splits = ("valid",)
    prompt = PromptTemplate(
        system="You stand in front of doors.",
        turn="{% for turn in history %}\n{{ turn.observation }} You: {{ turn.action }}\n{% endfor %}\n"
        "{{ task }} {{ observation }}{% if think %} Think first.{% endif %}"
        "{% if admissible_actions %} You may: {{ admissible_actions | join(', ') }}{% endif %}",
    )
    max_steps = 2

    def tasks(self, split: str) -> list[str]:
        return [f"door-{number}" for number in range(6)]

    def reset(self, task: str, seed: int) -> Reset:
        self._door, self._steps = int(task.removeprefix("door-")), 0
        return Reset("It is shut.", "shut", f"Open door {self._door}.", ("knock",), category=f"floor {self._door % 2}")

    def step(self, action: str) -> StepResult:
        self._steps += 1
        opened = action == f"say sesame{self._door}"
        late = not opened and self._steps == self.max_steps
        told = f" The password was sesame{self._door}." if late else ""
        text = "It opens." if opened else f"Nothing moves.{told}"
        admissible = action == "knock" or action.startswith("say ")
        return StepResult(
            text, text, float(opened), opened, late, admissible, opened, float(opened), admissible_actions=("knock",)
        )
