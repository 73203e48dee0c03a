"""The contract of environments on generated data of every level, in smaller worlds than the levels have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent_envs.search_qa.env import SearchQAEnv
from agent_envs.search_qa.generator import generate
from agent_envs.search_qa.levels import LEVELS
from agent_envs.testing import check_env


@pytest.mark.parametrize("name", LEVELS)
def test_every_level_keeps_the_contract(tmp_path: Path, name: str) -> None:
    level = replace(LEVELS[name], scale=min(LEVELS[name].scale, 400), tasks=(120, 60, 60))
    generate(tmp_path, level)
    env = SearchQAEnv(tmp_path)
    assert env.max_steps == level.max_steps
    for split in env.splits:
        check_env(lambda: SearchQAEnv(tmp_path), split, sample=10)
