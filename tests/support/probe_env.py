"""A plugin whose environment misbehaves on demand, for the tests of the worker pool."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from agent_envs import EnvError, NumberedTasks, PromptTemplate, Reset, StepResult, TextEnv, UnknownTask, register
from agent_envs.base import Expert


class OwnNames(Sequence[str]):
    """A sequence of a class that only those who loaded this plugin know."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index):
        return self._names[index]


class LockedNames(OwnNames):
    """A sequence that cannot be pickled."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self._lock = threading.Lock()


@register("probe")
class Probe(TextEnv):
    splits = ("train",)
    prompt = PromptTemplate(turn="{{ observation }}")
    max_steps = 1000
    made: ClassVar[int] = 0
    loaded_in: ClassVar[str] = ""

    def __init__(
        self,
        preload_fails: bool = False,
        make_fails: bool = False,
        make_refuses: bool = False,
        hang_in_close: bool = False,
        breaks: str = "",
    ) -> None:
        if breaks == "make":
            raise KeyError("broken inside")
        if make_refuses:
            raise UnknownTask("probe: no such data")
        if make_fails:
            raise EnvError("probe: nothing works here")
        Probe.made += 1
        self._number = Probe.made
        self._hang_in_close = hang_in_close
        self._breaks = breaks

    @classmethod
    def preload(cls, **options: Any) -> None:
        if options.get("preload_fails"):
            raise EnvError("probe: the data folder is missing")
        if options.get("breaks") == "preload":
            raise KeyError("broken inside")
        cls.loaded_in = str(os.getpid())

    def tasks(self, split: str) -> Sequence[str]:
        self._break_in("tasks")
        if split == "lazy":
            return NumberedTasks("lazy-", 1_000_000)
        if split == "own":
            return OwnNames(("c", "d"))
        if split == "locked":
            return LockedNames(("e", "f"))
        if split != "train":
            raise UnknownTask(f"probe has no split {split!r}")
        return ["a", "b"]

    def reset(self, task: str, seed: int) -> Reset:
        self._break_in("reset")
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
        self._break_in("expert")
        return None

    def _break_in(self, method: str) -> None:
        if self._breaks == method:
            raise KeyError("broken inside")

    def close(self) -> None:
        while self._hang_in_close:
            pass
