"""The wheel: it holds all that the packages need, names the version once, and works away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

import pytest

import openrlhf_gagpo
from support import tiny_vault
from support.paths import REPOSITORY

PACKAGES = ("agent_envs", "agent_envs_verifiers", "openrlhf_gagpo")
_FOR_THE_BUILD = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


def _python(*words: str, cwd: Path, path: Path | None = None) -> str:
    """Output of a Python that sees ``path`` before what is installed, and this checkout not at all."""
    environment: Mapping[str, str] = os.environ | {
        "PYTHONPATH": "" if path is None else str(path),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing a former build left in the checkout gets in."""
    source = tmp_path_factory.mktemp("source")
    for name in _FOR_THE_BUILD:
        shutil.copy2(REPOSITORY / name, source / name)
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(out)]
    _python("-m", "pip", "wheel", *options, str(source), cwd=source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds the wheel's content and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(folder)]
    _python("-m", "pip", "install", *options, str(wheel), cwd=folder)
    return folder


def test_it_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """A data file that is missing here has to be named in setup.py, under package_data."""
    present = {
        path.relative_to(REPOSITORY).as_posix()
        for name in PACKAGES
        for path in (REPOSITORY / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"{name}/py.typed" for name in PACKAGES} <= present
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == present


def test_its_version_is_the_one_of_the_package(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == openrlhf_gagpo.__version__


def test_what_is_imported_is_the_installed_copy(installed: Path, tmp_path: Path) -> None:
    code = "import agent_envs.vault, openrlhf_gagpo.cli.main as m; print(agent_envs.vault.__file__, m.__file__)"
    files = _python("-c", code, cwd=tmp_path, path=installed).split()
    assert all(Path(file).is_relative_to(installed) for file in files)


def test_it_checks_an_environment(installed: Path, tmp_path: Path) -> None:
    out = _python("-m", "openrlhf_gagpo.cli.main", "env", "check", "vault", cwd=tmp_path, path=installed)
    assert "vault" in out


def test_it_trains(installed: Path, vault_model: Path, tmp_path: Path) -> None:
    """Environment workers, estimators found by themselves and the report's template included."""
    words = tiny_vault.arguments(
        vault_model, tmp_path / "run", train__num_iterations=1, eval__before_train=False, ckpt__save_steps=-1
    )
    out = _python("-m", "openrlhf_gagpo.cli.main", *words, cwd=tmp_path, path=installed)
    assert "iteration   1/1" in out
    assert "<html" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
