"""Whatever is wrong with the input: one sentence, exit status 2, at once, and nothing heavy imported before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.models import model_folder, safetensors
from support.paths import REPOSITORY

HEAVY = ("torch", "transformers", "ray", "vllm", "deepspeed", "openrlhf", "matplotlib")

# Runs the command line and tells on stderr, after what the command said, which heavy packages were imported.
RUN = f"""
import sys
from openrlhf_gagpo.cli.main import main
status = main(sys.argv[1:])
print(status, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""

Prepare = Callable[[Path], list[str]]


def _broken(name: str, content: bytes) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        (folder / "model" / name).write_bytes(content)
        return []

    return prepare


def _foreign(folder: Path) -> list[str]:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").touch()
    return ["--run_dir", str(folder / "thesis")]


def _recipe(folder: Path) -> list[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text("env: {name: vault, options: {sise: 3}}\n")
    return ["--config", str(recipe)]


TRAIN: dict[str, tuple[Prepare, list[str]]] = {
    "truncated weights": (_broken("model.safetensors", safetensors()[:-3]), ["model.safetensors is cut short"]),
    "unparsable config.json": (_broken("config.json", b"{'a': 1}"), ["config.json cannot be read"]),
    "foreign run folder": (_foreign, ["holds no run (chapter.tex is there)", "--run_dir"]),
    "unwritable run folder": (lambda folder: ["--run_dir", "/proc/self/run"], ["/proc/self/run cannot be made"]),
    "option of the wrong type": (lambda folder: ["--env.options", "size=big"], ["size", "'big'"]),
    "two recipes": (lambda folder: ["--config", "a.yaml", "--config", "b.yaml"], ["--config is given 2 times"]),
    "a recipe's unknown option": (_recipe, ["recipe.yaml", "'sise'", "size"]),
    "hub model without a network": (
        lambda folder: ["--actor.model_name_or_path", "someone/some-model"],
        ["there is no model folder someone/some-model", "give a local folder"],
    ),
    "unknown plugin": (lambda folder: ["--algo.plugin", "gone.py"], ["there is no plugin file gone.py"]),
}


def run(words: list[str], folder: Path) -> tuple[str, str]:
    """The sentence and the last line of ``RUN``."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "HF_HOME": str(folder / "hub"),
            # Nobody listens there: what a machine without a network meets, whatever this one has.
            "HF_ENDPOINT": "http://127.0.0.1:9",
        },
        timeout=60,
    )
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2, done.stderr
    return lines[0], lines[1]


@pytest.mark.parametrize("case", TRAIN)
def test_training(case: str, tmp_path: Path) -> None:
    prepare, parts = TRAIN[case]
    model_folder(tmp_path / "model")
    words = [
        "train",
        "--backend",
        "local",
        "--env.name",
        "vault",
        "--actor.model_name_or_path",
        str(tmp_path / "model"),
    ]
    sentence, end = run([*words, "--run_dir", str(tmp_path / "run"), *prepare(tmp_path)], tmp_path)
    assert sentence.startswith("gagpo: error: ")
    assert [part for part in parts if part not in sentence] == [], sentence
    assert end == "2 []"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["env", "generate", "webshop", "--out", "shop", "--products", "0"], ["products", "0", "at least 1"]),
        (["env", "play", "vault", "--env.options", "size=big"], ["size", "'big'"]),
        (["show", "nowhere"], ["nowhere"]),
        (["shwo"], ["did you mean show?"]),
    ],
)
def test_other_commands(words: list[str], parts: list[str], tmp_path: Path) -> None:
    sentence, end = run(words, tmp_path)
    assert [part for part in parts if part not in sentence] == [], sentence
    assert end == "2 []"
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_transformers_does_not_know_is_one_sentence(vault_model: Path, tmp_path: Path) -> None:
    """The folder looks sound, so only loading finds out."""
    from support import tiny_vault

    (tmp_path / "model").mkdir()
    for file in vault_model.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": "no-such-model"}))
    words = tiny_vault.arguments(tmp_path / "model", tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf_gagpo.cli.main", *words],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("gagpo: error")]
    assert len(errors) == 1, done.stderr
    assert "cannot be loaded" in errors[0]
    assert "Traceback" not in done.stderr
