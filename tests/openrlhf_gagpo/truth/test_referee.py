"""``gagpo credit --truth`` on a real run of two iterations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from openrlhf_gagpo.cli.main import main
from openrlhf_gagpo.rollout.records import read_records, write_episodes
from openrlhf_gagpo.runfolder import RunFolder
from support import tiny_vault

_OPTIONS = {"size": 2, "keys": 1, "train_tasks": 4, "valid_tasks": 1, "test_tasks": 0}
_QUIET = {"eval__steps": -1, "eval__before_train": False, "eval__after_train": False, "report": False}


@pytest.fixture(scope="module")
def trained(vault_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("truth") / "run"
    changes = {"env__options": json.dumps(_OPTIONS), "algo__advantage__gamma": 0.9}
    process = tiny_vault.start(tiny_vault.arguments(vault_model, run, **_QUIET, **changes))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return run


def fail(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["credit", *map(str, argv)]) == 2
    return capsys.readouterr().err


def changed(trained: Path, tmp_path: Path, name: str, value: object) -> Path:
    """Copy the run, with another value in its configuration."""
    run = Path(shutil.copytree(trained, tmp_path / "copy"))
    path = RunFolder.open(run).config_path
    config = yaml.safe_load(path.read_text())
    config["values"][name] = value
    path.write_text(yaml.safe_dump(config))
    return run


@pytest.mark.parametrize("iteration", ["1", "1-2"])
def test_the_truth_beside_the_credit(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, iteration: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output, page = tmp_path / "out.jsonl", tmp_path / "page.html"
    argv = ["credit", trained, "--truth", "--iteration", iteration, "--estimator", "gagpo", "--estimator", "grpo"]
    assert main([*map(str, argv), "--output", str(output), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "sign accuracy" in printed
    assert "no true value is off by more than" in printed
    assert "Differences to the truth" in page.read_text()
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    scores = [line for line in lines if line.get("truth") == "score"]
    assert [(line["name"], line["gamma"]) for line in scores] == [
        (name, gamma) for gamma in (0.9, 1.0) for name in ("gagpo", "grpo")
    ]
    steps = [line for line in lines if line.get("truth") == "step"]
    chance = np.array([line["value"] for line in steps if line["gamma"] == 1.0])
    discounted = np.array([line["value"] for line in steps if line["gamma"] == 0.9])
    assert (
        len(chance)
        == len(discounted)
        == scores[0]["errors"]["1"]["steps"] + sum(scores[0]["errors"][name]["steps"] for name in ("2-3", "4-7", "8+"))
    )
    assert np.all((discounted <= chance + 1e-12) & (chance <= 1) & (discounted >= 0))
    assert all(line["value_error"] < 0.1 for line in steps)


def test_another_model_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = fail(capsys, trained, "--truth", "--iteration", 1, "--model", trained / "checkpoints" / "global_step1")
    assert "the model did not play iteration 1" in said
    assert said.count("\n") == 1


def test_a_missing_checkpoint_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = changed(trained, tmp_path, "run_dir", str(tmp_path / "elsewhere"))
    shutil.rmtree(run / "checkpoints" / "global_step1")
    assert "train with --ckpt.save_steps 1" in fail(capsys, run, "--truth")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rollout.history_length", 1, "prompts depend on the past"),
        ("rollout.think", True, "responses cannot be enumerated"),
        ("rollout.top_p", 0.9, "probabilities are not the model's"),
    ],
)
def test_settings_without_a_truth_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: object, said: str
) -> None:
    assert said in fail(capsys, changed(trained, tmp_path, name, value), "--truth")


def test_rules_that_differ_from_the_record_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "copy"))
    path = RunFolder.open(run).rollout_path(1)
    episodes, credit = read_records(path)
    episodes[0].steps[0].reward += 0.5
    write_episodes(path, episodes, credit)
    assert "recorded differently" in fail(capsys, run, "--truth", "--iteration", 1)


def test_only_a_run_knows_its_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RunFolder.open(trained).rollout_path(1)
    assert "give a run folder" in fail(capsys, file, "--estimator", "grpo", "--truth")
    assert "add --truth" in fail(capsys, trained, "--model", trained)
