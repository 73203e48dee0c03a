"""``gagpo credit --truth`` on a real run of two iterations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A model that now and then wins, so that values differ.
    model, run = (tmp_path_factory.mktemp("truth") / name for name in ("model", "run"))
    tiny_vault.save_model(model, steps=100, **_OPTIONS)
    changes = {"env__options": json.dumps(_OPTIONS), "algo__advantage__gamma": 0.9}
    process = tiny_vault.start(tiny_vault.arguments(model, run, **_QUIET, **changes))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return run


def fail(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["credit", *map(str, argv)]) == 2
    return capsys.readouterr().err


def changed(trained: Path, tmp_path: Path, **changes: object) -> Path:
    """Copy the run, with other values in its configuration; ``env__name="x"`` replaces ``env.name``."""
    run = Path(shutil.copytree(trained, tmp_path / "copy"))
    path = RunFolder.open(run).config_path
    config = yaml.safe_load(path.read_text())
    config["values"].update({name.replace("__", "."): value for name, value in changes.items()})
    path.write_text(yaml.safe_dump(config))
    return run


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
    lines = read(output)
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


def test_continuations_agree_with_the_exact_values(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    argv = ["credit", str(trained), "--truth", "--iteration", "1-2", "--estimator", "grpo", "--rows", "0"]
    exact, estimated = tmp_path / "exact.jsonl", tmp_path / "estimated.jsonl"
    assert main([*argv, "--output", str(exact)]) == 0
    assert main([*argv, "--continuations", "16", "--states", "16", "--output", str(estimated)]) == 0
    printed = capsys.readouterr().out
    assert "true values are means over 16 continuations at 16 of " in printed

    def key(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(line[name] for name in ("iteration", "group", "traj", "step", "gamma"))

    true = {key(line): line for line in read(exact) if line.get("truth") == "step"}
    found = [line for line in read(estimated) if line.get("truth") == "step"]
    assert len(found) == 2 * 16
    assert {line["iteration"] for line in found} == {1, 2}
    for name in ("value", "advantage"):
        off = np.array([line[name] - true[key(line)][name] for line in found])
        error = np.array([line[f"{name}_error"] for line in found])
        assert (error > 0).mean() > 0.3
        # Standard errors of few continuations are rough, and 0 if all of them earned the same.
        assert np.all(np.abs(off) <= 4 * np.maximum(error, 0.05))
        assert np.sqrt(np.mean((off[error > 0] / error[error > 0]) ** 2)) < 1.5
    scores = [line for line in read(estimated) if line.get("truth") == "score"]
    assert [(line["steps"], line["cosine"]) for line in scores] == [(16, None)] * 2
    certain = [abs(line["advantage"]) > 2 * line["advantage_error"] for line in found if line["gamma"] == 1.0]
    assert scores[-1]["signed"] <= sum(certain) < 16


def test_without_a_kept_step_none_is_drawn(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "copy"))
    path = RunFolder.open(run).rollout_path(1)
    episodes, credit = read_records(path)
    for episode in episodes:
        for step in episode.steps:
            step.reward = 0.0
    write_episodes(path, episodes, credit)
    argv = (run, "--truth", "--iteration", 1, "--continuations", 2, "--drop_reward_free_groups")
    assert "no estimator keeps a step of" in fail(capsys, *argv)


def test_an_environment_without_snapshots_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "stateless.py"
    plugin.write_text(
        "from agent_envs import register\n"
        "from agent_envs.vault import VaultEnv\n"
        "@register('stateless')\n"
        "class Stateless(VaultEnv):\n"
        "    can_snapshot = False\n"
    )
    run = changed(trained, tmp_path, env__name="stateless", env__plugin=[str(plugin)])
    said = fail(capsys, run, "--truth", "--continuations", 2)
    assert "environment stateless takes no snapshots" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--continuations", 8], "add --truth"),
        (["--truth", "--states", 8], "add --continuations"),
        (["--truth", "--seed", 1], "add --continuations"),
        (["--truth", "--continuations", 1], "needs at least 2"),
        (["--truth", "--continuations", 2, "--states", 0], "must be 1 or more"),
    ],
)
def test_arguments_of_continuations(
    trained: Path, capsys: pytest.CaptureFixture[str], argv: list[object], said: str
) -> None:
    assert said in fail(capsys, trained, *argv)


def test_another_model_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = fail(capsys, trained, "--truth", "--iteration", 1, "--model", trained / "checkpoints" / "global_step1")
    assert "the model did not play iteration 1" in said
    assert said.count("\n") == 1


def test_a_missing_checkpoint_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = changed(trained, tmp_path, run_dir=str(tmp_path / "elsewhere"))
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
    assert said in fail(capsys, changed(trained, tmp_path, **{name: value}), "--truth")


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
