"""A plugin: a vault in which half of the tasks pay for every possible action, and the other half pay nothing."""

from __future__ import annotations

from dataclasses import replace

from agent_envs import Reset, StepResult, register
from agent_envs.vault import VaultEnv


@register("paying_vault")
class PayingVault(VaultEnv):
    """Even a model that never solves a task earns different sums in episodes of a task with an even number."""

    def reset(self, task: str, seed: int) -> Reset:
        self._pays = int(task.rpartition("-")[2]) % 2 == 0
        return super().reset(task, seed)

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return replace(result, reward=0.1 * (self._pays and result.admissible))
