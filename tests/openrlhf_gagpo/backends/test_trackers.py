"""TensorBoard and Weights & Biases of the local backend, read back; test_local_runs has those of a whole run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from openrlhf_gagpo.backends.trackers import Trackers
from openrlhf_gagpo.config import checks, machine_checks
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.training.settings import TrackerSettings
from support import tiny_vault
from support.paths import REPOSITORY

_KEY = "0123456789abcdef0123456789abcdef01234567"
_OFFLINE = f"""
import logging, sys
from pathlib import Path
from openrlhf_gagpo.backends.trackers import Trackers
from openrlhf_gagpo.training.settings import TrackerSettings, WandbSettings

values = {{"train.seed": 5, "env.options": {{"n": 3}}}}
account = WandbSettings("{_KEY}", None, "the-group", "the-project", "the-run", values)
assert "{_KEY}" not in repr(account)
trackers = Trackers(TrackerSettings(wandb=account))
trackers.track(1, {{"policy/loss": 0.25, "policy/kl": None}}, evaluation=False)
trackers.track(1, {{"success": 0.5}}, evaluation=True)
trackers.close()
trackers.close()
"""


def test_tensorboard_holds_training_every_so_often_and_all_evaluations(tmp_path: Path) -> None:
    trackers = Trackers(TrackerSettings(every=2, tensorboard=tmp_path / "run"))
    for iteration in range(4):
        trackers.track(iteration, {"policy/loss": iteration / 2, "policy/kl": None}, evaluation=False)
    trackers.track(1, {"success": 0.5}, evaluation=True)
    trackers.close()
    trackers.close()
    found = EventAccumulator(str(tmp_path / "run")).Reload()
    series = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert series == {"train/policy/loss": [(0, 0.0), (2, 1.0)], "eval/success": [(1, 0.5)]}


def test_weights_and_biases_write_offline_without_the_key(tmp_path: Path) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
    }
    ended = subprocess.run([sys.executable, "-c", _OFFLINE], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = log.read_bytes()
    for word in ("train/policy/loss", "eval/success", "the-group", "the-project", "the-run", "train.seed"):
        assert word.encode() in written, word
    assert b"policy/kl" not in written
    assert [path for path in tmp_path.rglob("*") if path.is_file() and _KEY.encode() in path.read_bytes()] == []


def test_the_flags_become_settings(vault_model: Path) -> None:
    words = tiny_vault.arguments(vault_model, "runs/x")[1:]
    assert backend_settings(resolve(words)).trackers == TrackerSettings()
    words += ["--logger.tensorboard_dir", "boards", "--logger.wandb.key", _KEY, "--logger.logging_steps", "5"]
    settings = backend_settings(resolve(words)).trackers
    assert (settings.every, settings.tensorboard) == (5, Path("boards/x"))
    assert settings.wandb is not None
    assert (settings.wandb.name, settings.wandb.project) == ("x", "openrlhf_gagpo")
    assert settings.wandb.config["train.seed"] == resolve(words).train.seed
    assert _KEY not in str(settings.wandb.config)
    assert _KEY not in repr(settings)


@pytest.mark.parametrize(
    ("words", "package"),
    [(("--logger.wandb.key", "any"), "wandb"), (("--logger.tensorboard_dir", "boards"), "tensorboard")],
)
def test_a_tracker_that_is_not_installed_is_said_before_the_start(
    vault_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, str], package: str
) -> None:
    config = resolve([*tiny_vault.arguments(vault_model, tmp_path / "run")[1:], *words])
    checks.check(config)
    monkeypatch.setattr(machine_checks, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(ConfigError, match=f"{words[0]} logs with {package}, which is not installed"):
        checks.check(config)
