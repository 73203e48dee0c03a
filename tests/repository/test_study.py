"""The committed study: its matrices can be run, and its environment keeps the contract.

Commands run in processes of their own, because the study's environment would stay registered in this one.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.paths import REPOSITORY

STUDY = REPOSITORY / "results" / "study"
MATRICES = sorted(path for path in STUDY.parent.glob("*/*.yaml") if path.name != "config.yaml")
GAGPO = [sys.executable, "-c", "from openrlhf_gagpo.cli.main import main; raise SystemExit(main())"]


def gagpo(*words: str) -> str:
    done = subprocess.run([*GAGPO, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_matrices_can_be_run(path: Path, tmp_path: Path) -> None:
    kinds = Counter(
        line.split()[0] for line in gagpo("compare", str(path), "--out", str(tmp_path), "--dry_run").splitlines()
    )
    assert kinds["cell"] >= 6
    assert kinds["start"] >= 3


def test_the_variant_of_the_vault_keeps_the_contract() -> None:
    options = ["--env.options", "keys_hold=history", "--env.options", "discount=0.95"]
    said = gagpo("env", "check", "vault_variant", "--plugin", str(STUDY / "vault_variant.py"), *options)
    assert said.splitlines()[-1].split() == ["result", "ready"]
