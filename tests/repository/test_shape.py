"""The shape of the code: names stay with the thing they name, and imports point one way."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent_envs
from openrlhf_gagpo import agents, credit, losses, policies
from support.paths import REPOSITORY

PACKAGES = ("agent_envs", "openrlhf_gagpo")
FILES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))

# Names OpenRLHF's own flags give as choices.
_OPENRLHF_FLAGS = "openrlhf_gagpo/config/openrlhf_flags.py"
# The words "expert" and "random" also name who plays a check of an environment, which no policy does.
_NO_POLICIES = ("agent_envs/", "openrlhf_gagpo/cli/env")
# The one line that says which estimator a run has when nobody chooses.
_DEFAULT_LINE = ("openrlhf_gagpo/config/flags.py", "DEFAULT_ESTIMATOR")

# What a package may import of ours, from the bottom up.
GROUND = {
    "errors",
    "files",
    "hygiene",
    "machine",
    "metrics",
    "options",
    "output",
    "registry",
    "runfolder",
    "seeds",
    "stats",
}
LAYERS = {
    "losses": {"errors", "options", "registry"},
    "credit": {"errors", "options", "registry", "losses"},
    "rollout": GROUND,
    "agents": GROUND | {"rollout"},
    "evaluation": GROUND | {"rollout", "agents"},
    "training": GROUND | {"rollout", "credit", "losses", "evaluation", "plugins"},
    "backends": GROUND | {"rollout", "evaluation", "training"},
    "policies": GROUND | {"rollout", "backends"},
}


def homes() -> dict[str, Path]:
    """Registered name -> file or folder that it belongs to."""
    at = {}
    for name in credit.names():
        at[name] = Path(sys.modules[credit.get(name).compute.__module__].__file__ or "")
    for name in losses.names():
        at[name] = Path(sys.modules[losses.get(name).compute.__module__].__file__ or "")
    for name in agents.names():
        at[name] = Path(sys.modules[agents.get(name).make.__module__].__file__ or "")
    for name in policies.names():
        at[name] = Path(sys.modules[policies.get(name).make.__module__].__file__ or "")
    for name in agent_envs.names():
        at[name] = REPOSITORY / "agent_envs" / name
    return {name: home.relative_to(REPOSITORY) for name, home in at.items() if home.is_relative_to(REPOSITORY)}


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and value of every string in a file, docstrings and names in annotations included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_a_registered_name_is_written_only_where_the_thing_is() -> None:
    home = homes()
    assert {"gagpo", "gspo", "vault", "react", "endpoint"} <= home.keys()
    strays = []
    for path in FILES:
        file = path.relative_to(REPOSITORY)
        lines = path.read_text(encoding="utf-8").splitlines()
        for line, text in strings(path):
            allowed = (
                text not in home
                or file == home[text]
                or home[text] in file.parents
                or str(file) == _OPENRLHF_FLAGS
                or (text in policies.names() and str(file).startswith(_NO_POLICIES))
                or (str(file) == _DEFAULT_LINE[0] and lines[line - 1].startswith(_DEFAULT_LINE[1]))
            )
            if not allowed:
                strays.append(f"{file}:{line}: {text!r}")
    assert strays == []


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, at any depth of it, those for type checking alone included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_one_way(package: str) -> None:
    wrong = []
    for path in (REPOSITORY / "openrlhf_gagpo" / package).rglob("*.py"):
        for module in imports(path):
            root, _, rest = module.partition(".")
            part = rest.split(".")[0]
            if root == "openrlhf_gagpo" and part not in LAYERS[package] | {package, ""}:
                wrong.append(f"{path.relative_to(REPOSITORY)} imports {module}")
    assert wrong == []


def test_environments_know_nothing_of_training() -> None:
    wrong = [
        path for path in (REPOSITORY / "agent_envs").rglob("*.py") for m in imports(path) if m.startswith("openrlhf")
    ]
    assert wrong == []
