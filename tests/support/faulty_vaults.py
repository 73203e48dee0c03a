"""A plugin: the vault, failing on demand, for tests of whole runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from agent_envs import Reset, StepResult, register
from agent_envs.vault import VaultEnv


@register("faulty_vault")
class FaultyVault(VaultEnv):
    """Fails in the third step of the first episode that finds ``marker`` absent; of every one without ``marker``.

    ``how``: "raise" an exception, "die" as if killed with signal 9, or "kill the server" from which all workers come.
    """

    def __init__(self, how: str = "raise", marker: str = "", **options: int) -> None:
        super().__init__(**options)
        self._how = how
        self._marker = marker
        self._doomed = False

    def reset(self, task: str, seed: int) -> Reset:
        self._doomed = not self._marker or self._claim()
        return super().reset(task, seed)

    def _claim(self) -> bool:
        try:
            Path(self._marker).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def step(self, action: str) -> StepResult:
        if self._doomed and self._steps == 2:
            if self._how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._how == "kill the server":
                os.kill(os.getppid(), signal.SIGKILL)
                # It ends here, before it can answer.
                signal.pause()
            raise RuntimeError("the vault collapsed")
        return super().step(action)
