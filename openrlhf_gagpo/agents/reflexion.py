"""Reflexion (Shinn et al. 2023, arXiv 2303.11366): several trials per task, with a written reflection between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openrlhf_gagpo.agents.conversation import WORDING, Conversation, transcript
from openrlhf_gagpo.agents.registry import Agent, AgentOptions, register
from openrlhf_gagpo.errors import PolicyFault, PromptTooLong
from openrlhf_gagpo.options import declare
from openrlhf_gagpo.rollout.types import Episode, Message

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.table import Table

__all__ = ["ReflexionAgent", "ReflexionOptions"]

_NOTES = "You tried this task before and did not finish it. Your notes from those attempts:\n{notes}"
_QUESTION = """\
You tried to solve a task in a text environment and did not finish it. This is what happened, with your answers between
the observations.

{task}{transcript}

Say in a few sentences what went wrong and what you will do differently in the next attempt at the same task. Write only
this note to yourself; take no action now."""


@dataclass(frozen=True)
class ReflexionOptions(AgentOptions):
    """Options of Reflexion."""

    trials: int = declare(3, "attempts at each task", range=(1, 100))
    memory: int = declare(3, "latest reflections that a trial is shown", range=(1, 100))


@register("reflexion", ReflexionOptions)
class ReflexionAgent(Agent):
    """Plays like ReAct until the environment reports success or no trial is left, and reflects after each failure.

    Trials use the environment's verdict, so their result is not that of a single attempt.
    """

    thinks = True

    def wording(self) -> str:
        return f"{WORDING}\n{_NOTES}\n{_QUESTION}"

    async def play(self, table: Table) -> list[Episode]:
        trials: list[Episode] = []
        reflections: list[str] = []
        for trial in range(self.options.trials):
            notes = _noted(reflections[-self.options.memory :])
            episode = await table.play(Conversation(table.prompts, notes), trial)
            trials.append(episode)
            last = trial == self.options.trials - 1
            if episode.success or episode.faulted or last:
                break
            try:
                reflections.append(await _reflect(table, episode, trial))
            except PromptTooLong:
                # The next trial goes on with the reflections that there are.
                continue
            except PolicyFault as fault:
                episode.end_reason, episode.error = "policy_fault", str(fault)
                break
            episode.extra["reflection"] = reflections[-1]
        return trials


async def _reflect(table: Table, episode: Episode, trial: int) -> str:
    """Ask for a reflection on as many of the latest steps as the prompt can hold."""
    shown = len(episode.steps)
    while True:
        try:
            return await table.ask(_question(episode, shown), f"reflection {trial}")
        except PromptTooLong:
            if shown == 0:
                raise
            shown //= 2


def _noted(reflections: Sequence[str]) -> str:
    lines = "\n".join(f"- {' '.join(reflection.split())}" for reflection in reflections)
    return _NOTES.format(notes=lines) if lines else ""


def _question(episode: Episode, shown: int) -> list[Message]:
    steps = episode.steps[len(episode.steps) - shown :]
    observations = [step.observation for step in steps] + [str(episode.extra["final_observation"])]
    task = f"Task: {episode.extra['instruction']}\n" if "instruction" in episode.extra else ""
    happened = transcript([step.response for step in steps], observations)
    return [{"role": "user", "content": _QUESTION.format(task=task, transcript=happened)}]
