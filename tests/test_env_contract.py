from __future__ import annotations

from pathlib import Path

import pytest
from env_contract import check_env

import agent_envs
from agent_envs import EnvError, RegistryError

EXTERNAL = Path(__file__).parents[1] / "examples" / "external_env" / "number_hunt.py"
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
