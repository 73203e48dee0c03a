"""The tools around the code: hooks that run before a commit, and the pins they need."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.paths import REPOSITORY

HOOKS: list[dict[str, Any]] = [
    hook
    for repository in yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repository["hooks"]
]


def test_hooks_are_local() -> None:
    """A hook from elsewhere would be downloaded, in a version of its own."""
    config = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert {hook["language"] for hook in HOOKS} == {"system"}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_what_a_hook_runs_is_pinned_and_installed(hook: dict[str, Any]) -> None:
    program, *_ = hook["entry"].split()
    folder, _, tool = program.rpartition("/")
    assert folder == ".venv/bin"
    # The environment that runs the tests is the one that `make install` makes, whatever it is called.
    assert Path(sys.executable).with_name(tool).is_file()
    pins = (REPOSITORY / "requirements" / "cpu.txt").read_text(encoding="utf-8")
    assert re.search(rf"^{tool}==", pins, re.MULTILINE)


def test_hooks_check_what_make_check_does() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^check: install\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    checked = [tuple(line.replace("$(BIN)/", "").split()[:2]) for line in recipe.splitlines()]
    assert checked == [tuple(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in HOOKS]


def test_types_are_checked_in_both_packages() -> None:
    config = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert config["packages"] == ["agent_envs", "openrlhf_gagpo"]
    assert config["disallow_untyped_defs"]
    # Leniency is for other people's packages only.
    named = [module for override in config["overrides"] for module in override["module"]]
    assert not [module for module in named if module.startswith(("agent_envs", "openrlhf_gagpo"))]
