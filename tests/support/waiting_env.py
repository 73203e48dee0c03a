"""A plugin whose environment waits on demand, for the tests of the worker pool."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from agent_envs import EnvError, PromptTemplate, Reset, StepResult, TextEnv, UnknownTask, register


@register("waiting")
class Waiting(TextEnv):
    """``wait SECONDS`` takes that long; ``instances`` tells how many are open, ``block`` holds the worker up."""

    splits = ("train",)
    prompt = PromptTemplate(turn="{{ observation }}")
    max_steps = 1000
    waits = True
    open_instances = 0

    def __init__(self) -> None:
        Waiting.open_instances += 1

    def tasks(self, split: str) -> Sequence[str]:
        if split != "train":
            raise UnknownTask(f"waiting has no split {split!r}")
        return ["a"]

    def reset(self, task: str, seed: int) -> Reset:
        return Reset(task, task)

    def step(self, action: str) -> StepResult:
        return asyncio.run(self.astep(action))

    async def astep(self, action: str) -> StepResult:
        kind, _, rest = action.partition(" ")
        if kind == "wait":
            await asyncio.sleep(float(rest))
        elif kind == "refuse":
            await asyncio.sleep(0)
            raise EnvError("waiting: nobody answered")
        elif kind == "die":
            await asyncio.sleep(0)
            os._exit(5)
        elif kind == "block":
            while True:
                pass
        text = str(Waiting.open_instances) if kind == "instances" else action
        return StepResult(text, text, 0.0, terminated=False, truncated=False)

    def close(self) -> None:
        Waiting.open_instances -= 1
