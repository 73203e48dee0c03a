"""``gagpo export``: from runs, evaluations and files; options; and one sentence for what cannot be exported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openrlhf_gagpo.cli.export import main as export
from openrlhf_gagpo.cli.main import main as gagpo
from openrlhf_gagpo.export import formats
from openrlhf_gagpo.runfolder import RunFolder
from support import evaluations
from support.exports import chat_tokenizer
from support.paths import REPOSITORY
from support.report_runs import make_run
from support.step_files import EXAMPLE, rows_of, write_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    made = make_run(tmp_path_factory.mktemp("runs") / "first", iterations=3)
    chat_tokenizer("").save_pretrained(made.model_dir)
    return made


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluations") / "expert"
    vault = ["--env.name", "vault", "--env.split", "valid", "--env.workers", "1", "--env.options", "valid_tasks=3"]
    evaluations.evaluate(out, "--policy", "expert", "--eval.n_samples_per_prompt", "2", *vault)
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_under_names_of_its_own(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in formats.names():
        if name != "jsonl":
            assert export([str(run.path), "--format", name]) == 0
    started = run.info()["started"][:19].replace(":", "-")
    names = {"first.messages.jsonl", f"{started}_first.inspect.json", "first.atif"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "messages: 44 steps of first in first.messages.jsonl\n" in capsys.readouterr().out
    assert {line["iteration"] for line in lines(tmp_path / "first.messages.jsonl")} == {3}
    assert lines(tmp_path / "first.messages.jsonl")[1]["advantage"] == -0.5
    log = json.loads((tmp_path / f"{started}_first.inspect.json").read_text())
    assert log["eval"]["model"] == "models/tiny"
    assert log["eval"]["metadata"]["settings"]["algo.advantage.gamma"] == 0.95
    assert len(list((tmp_path / "first.atif").iterdir())) == 8


def test_iterations_and_successes(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert export([str(run.path), "--format", "messages", "--iteration", "1-2", "--out", str(out)]) == 0
    assert {line["iteration"] for line in lines(out)} == {1, 2}
    words = ["--format", "messages", "--iteration", "1-3", "--successes_only", "--out", str(out)]
    assert export([str(run.path), *words]) == 0
    assert {(line["iteration"], line["traj"]) for line in lines(out)} == {(1, "t0"), (2, "t0"), (2, "t1")} | {
        (3, f"t{number}") for number in range(3)
    }


def test_an_evaluation(evaluation: Path, tmp_path: Path) -> None:
    for name in formats.names():
        assert export([str(evaluation), "--format", name, "--out", str(tmp_path / name)]) == 0
    log = json.loads((tmp_path / "inspect").read_text())
    assert (log["eval"]["task"], log["eval"]["dataset"]["samples"]) == ("vault", 3)
    assert [sample["epoch"] for sample in log["samples"]] == [1, 2] * 3
    assert log["results"]["scores"][0]["metrics"]["mean"]["value"] == 1.0
    assert len(list((tmp_path / "atif").iterdir())) == 6
    # The steps of the samples of a task are those of a group.
    steps = lines(tmp_path / "jsonl")
    assert len({line["group"] for line in steps}) == 3
    assert gagpo(["credit", str(tmp_path / "jsonl"), "--estimator", "gagpo", "--output", str(tmp_path / "credit")]) == 0
    assert len(lines(tmp_path / "credit")) == len(steps) == len(lines(tmp_path / "messages"))


def test_files_of_steps_and_of_episodes(run: RunFolder, tmp_path: Path) -> None:
    columns = ("group", "traj", "step", "state", "reward", "next_state", "terminated", "truncated")
    file = write_rows(tmp_path / "steps.jsonl", rows_of(EXAMPLE, columns))
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    assert export([str(file), "--format", "jsonl", "--out", str(out)]) == 0
    assert [{name: line[name] for name in columns} for line in lines(out)] == rows_of(EXAMPLE, columns)
    assert export([str(out), "--format", "jsonl", "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    assert export([str(run.rollout_path(2)), "--format", "inspect", "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["samples"]) == 8
    words = ["--format", "messages", "--out", str(out)]
    assert export([str(run.rollout_path(2)), *words, "--tokenizer", str(run.model_dir)]) == 0
    assert len(lines(out)) == 44


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["RUN"], "required: --format"),
        (["RUN", "--format", "x"], "invalid choice: 'x'"),
        (["none", "--format", "jsonl"], "none does not exist"),
        (["FOLDER", "--format", "jsonl"], "is neither a run nor an evaluation"),
        (["FILE", "--format", "jsonl", "--iteration", "1"], "--iteration chooses iterations of a run"),
        (["FILE", "--format", "messages"], "name the folder of the model that played with --tokenizer"),
        (["FILE", "--format", "jsonl", "--out", "FILE"], "is where the records are"),
        (["RUN", "--format", "inspect", "--out", "RUN/log.json"], "is where the records are"),
        (["RUN", "--format", "atif", "--tokenizer", "x"], "--tokenizer reads prompts, which the format atif does not"),
        (["RUN", "--format", "jsonl", "--iteration", "9"], "has no recorded iteration 9"),
        (["FAILED", "--format", "inspect", "--successes_only"], "holds no episode to export"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    failed = write_rows(tmp_path / "failed.jsonl", rows_of(EXAMPLE, success=[False] * 8))
    places = {"RUN": run.path, "FOLDER": tmp_path, "FILE": run.rollout_path(1), "FAILED": failed}
    known = list(words)
    for name, path in places.items():
        known = [word.replace(name, str(path)) if word.startswith(name) else word for word in known]
    if "--out" not in known and "--format" in known:
        known += ["--out", str(tmp_path / "out")]
    assert gagpo(["export", *known]) == 2
    found = capsys.readouterr()
    assert sentence in found.err
    assert found.err.count("\n") == 1


def test_help_imports_nothing_heavy_and_names_the_formats() -> None:
    heavy = ["torch", "transformers", "ray", "vllm", "matplotlib", "scipy", "jinja2", "asyncio"]
    code = (
        "import sys, time\nfrom openrlhf_gagpo.cli.main import main\n"
        "try:\n    main(['export', '--help'])\nexcept SystemExit:\n    pass\n"
        f"sys.stderr.write(str([name for name in {heavy!r} if name in sys.modules]))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr == "[]"
    for name in formats.names():
        assert f"  {name} " in done.stdout
