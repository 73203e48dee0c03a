"""What a resumed run refuses, and what never reaches the disk."""

from __future__ import annotations

import shutil
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from openrlhf_gagpo import run as run_module
from openrlhf_gagpo.config import machine_checks
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.errors import ConfigError, RunError
from openrlhf_gagpo.progress import ProgressDisplay
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.backend import Restored
from support.models import model_folder
from support.paths import DATA


def _folder(path: Path, *flags: str) -> RunFolder:
    config = resolve(["--env.name", "vault", "--run_dir", str(path), *flags])
    return RunFolder.create(path, config.to_dict(), "prompt", command=[])


def _config(path: Path, *flags: str):
    return resolve(["--env.name", "vault", "--run_dir", str(path), "--ckpt.load_enable", *flags])


def test_secrets_stay_out_of_the_recorded_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["gagpo", "train", "--logger.wandb.key", "hunter2", "--logger.wandb.key=hunter2", "--train.seed", "3"]
    monkeypatch.setattr(sys, "argv", words)
    command = resolve(["--env.name", "vault"]).command()
    assert command == ["gagpo", "train", "--logger.wandb.key", "***", "--logger.wandb.key=***", "--train.seed", "3"]


def test_a_folder_that_another_process_uses_is_refused(tmp_path: Path) -> None:
    with (
        run_module._hold(tmp_path / "run"),
        pytest.raises(RunError, match=r"another process runs in .*run; wait for it, or give another --run_dir"),
    ):
        run_module._hold(tmp_path / "run")
    # The file that stays behind does not make the folder a taken one.
    assert list(machine_checks._run_dir(resolve(["--env.name", "vault", "--run_dir", str(tmp_path / "run")]))) == []
    run_module._hold(tmp_path / "run").close()


class _NoCheckpoint:
    def load_checkpoint(self) -> None:
        return None


def test_iterations_without_a_checkpoint_are_not_thrown_away(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "run")
    folder.append_metrics(1, {"rollout/success": 0.5})
    with pytest.raises(RunError, match=r"1 iterations but no checkpoint.*--ckpt.save_steps"):
        run_module._resume(_NoCheckpoint(), folder, ProgressDisplay(1))
    assert len(folder.metrics()) == 1


def test_a_damaged_checkpoint_and_the_one_taken_in_its_place_are_named(tmp_path: Path) -> None:
    class Damaged:
        def load_checkpoint(self) -> Restored:
            path = tmp_path / "global_step2"
            return Restored({"iteration": 2}, path, {str(tmp_path / "global_step4"): "OSError: model is missing"})

    console = Console(file=StringIO())
    assert run_module._resume(Damaged(), _folder(tmp_path / "run"), ProgressDisplay(1, console)) == 2
    assert console.file.getvalue().splitlines() == [
        f"the checkpoint {tmp_path}/global_step4 cannot be read (OSError: model is missing); {tmp_path}/global_step2 "
        "is taken instead",
        "continuing after iteration 2",
    ]


def test_a_run_that_never_began_starts_anew(tmp_path: Path) -> None:
    assert run_module._resume(_NoCheckpoint(), _folder(tmp_path / "run"), ProgressDisplay(1)) == 0


@pytest.mark.parametrize("changed", [["--train.seed", "1"], ["--rollout.batch_size", "3"], ["--actor.adam.lr", "1e-3"]])
def test_a_resumed_run_keeps_its_settings(tmp_path: Path, changed: list[str]) -> None:
    folder = _folder(tmp_path / "run")
    with pytest.raises(ConfigError, match=changed[0].removeprefix("--")):
        run_module._check_same_run(_config(tmp_path / "run", *changed), folder)


@pytest.mark.parametrize(
    "changed", [["--eval.tasks", "5"], ["--ckpt.save_steps", "3"], ["--train.num_iterations", "900"]]
)
def test_what_does_not_change_the_run_may_change(tmp_path: Path, changed: list[str]) -> None:
    run_module._check_same_run(_config(tmp_path / "run", *changed), _folder(tmp_path / "run"))


@pytest.mark.parametrize("changed", [["--eval.steps", "7"], ["--ckpt.save_steps", "3"]])
def test_a_run_that_overlaps_keeps_the_iterations_before_which_it_does_not(tmp_path: Path, changed: list[str]) -> None:
    overlap = ["--env.eval_split", "valid", "--train.overlap", "one_step"]
    folder = _folder(tmp_path / "run", *overlap)
    run_module._check_same_run(_config(tmp_path / "run", *overlap, "--eval.tasks", "5"), folder)
    with pytest.raises(ConfigError, match=changed[0].removeprefix("--")):
        run_module._check_same_run(_config(tmp_path / "run", *overlap, *changed), folder)


def test_iterations_that_decide_nothing_may_change_in_a_recipe_that_overlaps(tmp_path: Path) -> None:
    """One process does not overlap, and without a split there are no evaluations."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {overlap: one_step}\n")
    for words, changed in ((["--backend", "local"], "--ckpt.save_steps"), ([], "--eval.steps")):
        words = ["--config", str(recipe), *words]
        folder = _folder(tmp_path / changed, *words)
        run_module._check_same_run(_config(tmp_path / changed, *words, changed, "3"), folder)


def test_a_schedule_fixes_the_number_of_iterations(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "run", "--actor.lr_scheduler", "linear")
    longer = _config(tmp_path / "run", "--actor.lr_scheduler", "linear", "--train.num_iterations", "900")
    with pytest.raises(ConfigError, match="num_iterations"):
        run_module._check_same_run(longer, folder)


def test_a_run_of_the_first_release_is_continued_with_its_own_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it saved has its meaning in today's flags, the deprecated ones included."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA / "run_format1", "runs/old")
    folder = RunFolder.open("runs/old")
    words = folder.info()["command"][2:]
    run_module._check_same_run(resolve([*words, "--ckpt.load_enable"]), folder)
    other = resolve([*words, "--ckpt.load_enable", "--algo.advantage.invalid_rule", "format"])
    with pytest.raises(ConfigError, match="inadmissible_penalty"):
        run_module._check_same_run(other, folder)
    folder.resume(0)
    assert folder.info()["format"] == 2


def test_whatever_a_damaged_tokenizer_leads_to_is_one_sentence(tmp_path: Path) -> None:
    """An empty object is a KeyError to transformers, and other content a plain Exception."""
    model = model_folder(tmp_path / "model")
    config = _config(tmp_path / "run", "--actor.model_name_or_path", str(model))
    with pytest.raises(ConfigError, match=r"no tokenizer can be loaded from .* \(KeyError: .*\); copy or") as stop:
        run_module._tokenizer(config, ProgressDisplay(1))
    assert "\n" not in str(stop.value)
