"""Chat messages, one line per step, for supervised fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_gagpo.export.registry import register
from openrlhf_gagpo.rollout.types import Message

if TYPE_CHECKING:
    from openrlhf_gagpo.export.recording import Recorded, Recording

__all__ = ["write_messages"]


@register("messages", "chat messages of every step", suffix=".jsonl", reads_prompts=True)
def write_messages(recording: Recording, path: Path) -> str:
    """Write the prompt of each step as it was sent, followed by the response, under ``messages``.

    The other names of a line say which step it is and how good it was. A step whose policy read no prompt, such as an
    expert's, has what the environment said instead. Faulted episodes are left out.

    Raises:
        ConfigError: no tokenizer is found, or a prompt does not have the form of its chat template.
    """
    from openrlhf_gagpo.comparison.output import writing

    steps = 0
    with writing(path, "--out") as file:
        for item in recording.episodes:
            if item.episode.faulted:
                continue
            for index in range(len(item.episode.steps)):
                file.write(json.dumps(_line(recording, item, index)) + "\n")
                steps += 1
    return f"{steps} steps"


def _line(recording: Recording, item: Recorded, index: int) -> dict[str, object]:
    episode, step = item.episode, item.episode.steps[index]
    answer: Message = {"role": "assistant", "content": step.response}
    return {
        "messages": [*_prompt(recording, item, index), answer],
        "iteration": item.iteration,
        "task": episode.task,
        "category": episode.category,
        "group": episode.group,
        "traj": episode.trajectory,
        "step": step.index,
        "reward": step.reward,
        "success": episode.success,
        "score": episode.score,
        "format_valid": step.format_valid,
        "admissible": step.admissible,
        "advantage": item.played.credit[index].get("advantage"),
    }


def _prompt(recording: Recording, item: Recorded, index: int) -> list[Message]:
    step = item.episode.steps[index]
    if step.messages:
        return step.messages
    if step.prompt_ids:
        return recording.prompts.messages(step)
    instruction = str(item.episode.extra.get("instruction", ""))
    apart = instruction and instruction not in step.observation
    return [{"role": "user", "content": f"{instruction}\n\n{step.observation}" if apart else step.observation}]
