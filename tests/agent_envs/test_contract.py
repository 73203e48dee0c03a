from __future__ import annotations

from dataclasses import replace

import pytest

import agent_envs
from agent_envs import EnvError, RegistryError, Reset, StepResult
from agent_envs.testing import check_env
from agent_envs.vault import VaultEnv
from support.paths import REPOSITORY

EXTERNAL = REPOSITORY / "examples" / "external_env" / "number_hunt.py"
NEEDS_DATA = ("alfworld", "webshop")

agent_envs.load_plugin(str(EXTERNAL))


@pytest.mark.parametrize("name", agent_envs.names())
def test_contract(name: str) -> None:
    try:
        agent_envs.make(name).close()
    except (EnvError, RegistryError) as error:
        if name not in NEEDS_DATA:
            raise
        pytest.skip(f"{name}: {error}")
    for split in agent_envs.get(name).splits:
        check_env(lambda: agent_envs.make(name), split, sample=3)


@pytest.mark.parametrize(
    "options", [{"size": 2, "keys": 1, "train_tasks": 4, "valid_tasks": 0, "test_tasks": 0}, {"keys": 4, "size": 5}]
)
def test_contract_holds_for_other_vaults(options: dict[str, int]) -> None:
    check_env(lambda: agent_envs.make("vault", max_steps=25, **options), "train")


class SlipperyVault(VaultEnv):
    """Lists no actions, and one that makes no sense moves the agent without telling."""

    def reset(self, task: str, seed: int) -> Reset:
        return replace(super().reset(task, seed), admissible_actions=())

    def step(self, action: str) -> StepResult:
        state = self._state
        result = super().step(action)
        if not result.admissible and state is not None:
            state.agent = state.layout.altar
        return replace(result, admissible_actions=())


class SilentVault(SlipperyVault):
    """Lists no actions, and keeps the contract."""

    def step(self, action: str) -> StepResult:
        return replace(VaultEnv.step(self, action), admissible_actions=())


class EndlessVault(VaultEnv):
    """Counts only actions that make no sense."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        self._steps -= result.admissible
        return result


def test_contract_is_checked_where_no_actions_are_listed() -> None:
    check_env(SilentVault, "train", sample=1)
    with pytest.raises(AssertionError, match="malformed actions changed what"):
        check_env(SlipperyVault, "train", sample=1)


def test_an_endless_environment_breaks_the_contract() -> None:
    with pytest.raises(AssertionError, match="goes on after max_steps"):
        check_env(lambda: EndlessVault(max_steps=14), "train", sample=1)
