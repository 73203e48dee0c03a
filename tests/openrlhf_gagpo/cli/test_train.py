"""The command line from outside: help, errors, dry run, environment hygiene."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openrlhf_gagpo import credit, hygiene
from openrlhf_gagpo.cli import main as cli
from openrlhf_gagpo.config.flag import Disposition
from openrlhf_gagpo.config.flags import all_flags
from support.models import model_folder
from support.paths import REPOSITORY

ROOT = REPOSITORY
HEAVY = ("torch", "ray", "vllm", "transformers", "openrlhf", "deepspeed")


@pytest.fixture
def model(tmp_path):
    return str(model_folder(tmp_path / "model"))


def vault(model: str, *more: str) -> list[str]:
    recipe = str(ROOT / "examples" / "recipes" / "vault_demo.yaml")
    return ["train", "--config", recipe, "--actor.model_name_or_path", model, "--run_dir", f"{model}-run", *more]


def run(*argv: str) -> tuple[subprocess.CompletedProcess[str], float]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    start = time.monotonic()
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=60, env=env)
    return done, time.monotonic() - start


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in cli.COMMANDS)
    assert "print one recorded episode of a run" in out
    assert cli.main([]) == 2


def test_train_help_lists_every_honoured_flag_and_no_refused_one(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    for flag in all_flags().values():
        shown = flag.disposition is not Disposition.REFUSED and not flag.deprecated
        assert (f"--{flag.name}" in words) == shown, flag.name


def by_value(defaults: dict[str, object]) -> str:
    """Defaults as the help page shows them."""
    owners: dict[object, list[str]] = {}
    for name, value in defaults.items():
        owners.setdefault(value, []).append(name)
    return "(" + "; ".join(f"{value} for {', '.join(names)}" for value, names in owners.items()) + ")"


def test_train_help_shows_the_defaults_that_a_run_has(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    entries = [credit.get(name) for name in credit.names()]
    described = {
        "--algo.advantage.gamma": by_value(
            {e.name: e.options_cls().gamma for e in entries if hasattr(e.options_cls(), "gamma")}
        ),
        "--algo.advantage.invalid_penalty_mode": by_value(
            {e.name: e.options_cls().invalid_penalty_mode for e in entries}
        ),
        "--actor.policy_loss_type": by_value({e.name: e.presets["actor.policy_loss_type"] for e in entries}),
        "--actor.eps_clip_low_high": "(0.003 0.004 for a2tgpo; 1.0 5.0 for cispo; 0.2 0.2 for gspo, ppo)",
        "--actor.lr_scheduler": "(default constant)",
        "--algo.advantage.estimator": "(default gagpo)",
        "--rollout.n_samples_per_prompt": "(default 8)",
    }
    for flag, default in described.items():
        entry = page[page.index(f" {flag} ") + 1 :]
        assert default in entry[: entry.index(" --", 3)], flag


def test_an_unknown_command_is_one_sentence(capsys):
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "gagpo: error: 'trian' is not a command; did you mean train?\n"


def test_errors_from_both_entry_points_are_quick_and_without_traceback():
    for argv in (["-m", "openrlhf_gagpo.cli.main", "train"], ["-m", "openrlhf_gagpo.cli.train"]):
        done, seconds = run(*argv, "--train.seed", "abc")
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr == "gagpo: error: --train.seed wants a whole number, not 'abc'\n"
        # Twice the promised time, for busy machines.
        assert seconds < 4


def test_help_and_dry_run_import_nothing_heavy(model):
    code = f"""
import sys
from openrlhf_gagpo.cli.main import main
try:
    main(["train", "--help"])
except SystemExit:
    pass
assert main({vault(model, "--dry_run")!r}) == 0
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done, _ = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("HEAVY []")


def test_dry_run_shows_values_origins_and_placement(model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(vault(model, "--dry_run", "--train.seed", "7", "--logger.wandb.key", "hush")) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert lines["train.seed"] == ["7", "command", "line"]
    assert lines["algo.kl.init_coef"] == ["0.003", "vault_demo.yaml"]
    assert lines["algo.advantage.lambd"] == ["0.8", "estimator", "gagpo"]
    assert "1 bundle of 1 logical GPU" in out
    assert "8 groups x 8 = 64" in out
    assert "ceil(environment steps / 160)" in out
    assert "hush" not in out
    assert not Path(model, "run").exists()


def test_train_hands_the_checked_configuration_to_the_run(model, monkeypatch):
    import types

    seen = []
    module = types.ModuleType("openrlhf_gagpo.run")
    module.run = lambda config: seen.append(config) or 3
    monkeypatch.setitem(sys.modules, "openrlhf_gagpo.run", module)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cli.main(vault(model)) == 3
    assert seen[0].env.name == "vault"


def test_interrupts_end_quietly(capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    assert cli.guarded(interrupted, []) == 130
    assert capsys.readouterr().err == "gagpo: interrupted\n"


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ";"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "runs/x/metrics.jsonl"), " under runs/x/metrics.jsonl;"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), ";"),
    ],
)
def test_a_full_disk_is_told_of_in_a_sentence(capsys, error, where):
    def full(argv):
        raise error

    assert cli.guarded(full, []) == 1
    assert capsys.readouterr().err.startswith(f"gagpo: error: no space is left on the disk{where}")


def test_a_defect_keeps_its_traceback():
    def broken(argv):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        cli.guarded(broken, [])


def test_hygiene_yields_to_the_user(monkeypatch):
    for name in hygiene.DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    hygiene.apply()
    assert os.environ["DO_NOT_TRACK"] == "0"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert "WANDB_MODE" not in hygiene.DEFAULTS
