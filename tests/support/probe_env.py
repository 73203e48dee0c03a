"""A plugin whose environment misbehaves on demand, for the tests of the worker pool."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from agent_envs import EnvError, PromptTemplate, Reset, StepResult, TextEnv, UnknownTask, register
from agent_envs.base import Expert


@register("probe")
class Probe(TextEnv):
    name: ClassVar[str] = "probe"
    splits: ClassVar[tuple[str, ...]] = ("train",)
    prompt: ClassVar[PromptTemplate] = PromptTemplate(turn="{{ observation }}")
    max_steps = 1000
    made: ClassVar[int] = 0
    loaded_in: ClassVar[str] = ""

    def __init__(
        self,
        preload_fails: bool = False,
        make_fails: bool = False,
        make_refuses: bool = False,
        hang_in_close: bool = False,
    ) -> None:
        if make_refuses:
            raise UnknownTask("probe: no such data")
        if make_fails:
            raise EnvError("probe: nothing works here")
        Probe.made += 1
        self._number = Probe.made
        self._hang_in_close = hang_in_close

    @classmethod
    def preload(cls, **options: Any) -> None:
        if options.get("preload_fails"):
            raise EnvError("probe: the data folder is missing")
        cls.loaded_in = str(os.getpid())

    def tasks(self, split: str) -> Sequence[str]:
        if split != "train":
            raise UnknownTask(f"probe has no split {split!r}")
        return ["a", "b"]

    def reset(self, task: str, seed: int) -> Reset:
        if task not in self.tasks("train"):
            raise UnknownTask(f"probe has no task {task!r}")
        return Reset(f"{task} {seed}", task)

    def step(self, action: str) -> StepResult:
        info: dict[str, object] = {}
        if action == "raise":
            raise KeyError("broken inside")
        if action == "sys.exit":
            sys.exit(3)
        if action == "die":
            os._exit(5)
        if action == "hang":
            while True:
                pass
        if action == "unpicklable":
            info["lock"] = threading.Lock()
        if action == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if action == "print":
            print("printed by an environment")  # noqa: T201
        answers = {
            "modules": " ".join(sys.modules),
            "main": str(sys.modules["__main__"].__dict__.get("__file__", "")),
            "pid": str(os.getpid()),
            "number": str(self._number),
            "preloaded": f"{self.loaded_in} {os.getppid()}",
        }
        text = answers.get(action, action)
        return StepResult(text, text, 0.0, terminated=False, truncated=False, info=info)

    def expert(self) -> Expert | None:
        return None

    def close(self) -> None:
        while self._hang_in_close:
            pass
