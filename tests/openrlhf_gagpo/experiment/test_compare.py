"""``gagpo compare`` from matrix to report: stages, failures, interruptions."""

from __future__ import annotations

import csv
import fcntl
import gzip
import json
import os
import select
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from openrlhf_gagpo.cli import compare
from openrlhf_gagpo.errors import ConfigError, RunError
from openrlhf_gagpo.experiment import jobs
from openrlhf_gagpo.experiment.archive import ARCHIVE
from openrlhf_gagpo.experiment.cells import Cell
from openrlhf_gagpo.experiment.matrix import Warmstart
from support import pretend_gagpo, tiny_vault
from support.paths import REPOSITORY

ALGORITHMS = {"one": {"algo.advantage.estimator": "gagpo"}, "two": {"algo.advantage.estimator": "grpo"}}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "GAGPO", (sys.executable, pretend_gagpo.__file__))


def written(folder: Path, **content: Any) -> Path:
    tiny_vault.write_recipe(folder / "base.yaml", "model")
    path = folder / "matrix.yaml"
    path.write_text(
        yaml.safe_dump({"base": "base.yaml", "algorithms": ALGORITHMS, "seeds": [0, 1]} | content, sort_keys=False)
    )
    return path


def numbers(out: Path) -> dict[tuple[str, str, str], float]:
    with (out / "results.csv").open() as file:
        return {(row["algorithm"], row["seed"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}


@pytest.mark.usefixtures("pretend")
def test_starts_are_remade_and_a_value_is_chosen_on_seeds_of_its_own(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "starts.json").write_text(json.dumps({"1": 0.9, "1001": 0.01, "2001": 0.2}))
    matrix = written(
        tmp_path,
        common={"actor.adam.lr": 3.0},
        warmstart={"steps": 3, "accept": [0.1, 0.4], "tries": 3},
        tuning={"actor.adam.lr": [5.0, 7.0, 2.0], "seeds": [8]},
    )
    # What is pretended has no lr of the recipe, so only the tuned flag counts.
    assert compare.main([str(matrix), "--out", str(out), "--jobs", "2"]) == 0
    made = json.loads((out / "starts" / "default" / "seed1" / "start.json").read_text())
    assert [(entry["seed"], entry["success"]) for entry in made["tries"]] == [(1, 0.9), (1001, 0.01), (2001, 0.2)]
    assert (out / "starts" / "default" / "seed1" / "model" / "seed.txt").read_text() == "2001"
    choices = json.loads((out / "tuning.json").read_text())["choices"]
    assert [choice["chosen"] for choice in choices] == [7.0, 7.0]
    assert choices[0]["means"] == pytest.approx({"5.0": 0.58, "7.0": 0.78, "2.0": 0.28})
    found = numbers(out)
    assert found["one", "0", "final eval/success"] == pytest.approx(0.7)
    assert found["two", "1", "final eval/success"] == pytest.approx(0.71)
    assert not [key for key in found if key[1] == "8"]
    printed = capsys.readouterr().out
    assert "start 3/3 start default/seed1: made, success 0.200, 2 remade" in printed
    assert "| default | two | actor.adam.lr | 0.58 | 0.78 | 0.28 | 7.0 |" in (out / "results.md").read_text()
    record = json.loads((out / "records" / "cells" / "default" / "one" / "seed0" / "cell.json").read_text())
    assert (record["value"], record["attempts"][0]["exit_status"], record["side_by_side"]) == (7.0, 0, 2)
    assert record["attempts"][0]["cpu_seconds"] > 0


@pytest.mark.usefixtures("pretend")
def test_a_failed_cell_stops_no_other_and_is_tried_again(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "failing.json").write_text(json.dumps({"0": 1}))
    matrix = str(written(tmp_path))
    with pytest.raises(RunError, match=r"2 cells or starts have no result \(default/one/seed0, default/two/seed0\)"):
        compare.main([matrix, "--out", str(out)])
    assert "cell 1/4 default/one/seed0: failed (exit status 1, gagpo: error: told to fail)" in capsys.readouterr().out
    assert "Without a result: default/one/seed0" in (out / "report.html").read_text()
    assert "One seed only, so no interval" in (out / "results.md").read_text()
    (out / "failing.json").unlink()
    # A pretended run says nothing of its settings, so its folder would count as made with others.
    for cell in (out / "cells" / "default").glob("*/seed1/run.json"):
        cell.write_text(cell.read_text().replace("finished", "failed"))
    assert compare.main([matrix, "--out", str(out)]) == 0
    assert len(numbers(out)) == 4 * len({key[2] for key in numbers(out)})
    record = json.loads((out / "records" / "cells" / "default" / "one" / "seed0" / "cell.json").read_text())
    assert [attempt["exit_status"] for attempt in record["attempts"]] == [1, 0]
    # A finished run that was deleted is not what the cell, run again, has cost.
    again = json.loads((out / "records" / "cells" / "default" / "one" / "seed1" / "cell.json").read_text())
    assert [attempt["exit_status"] for attempt in again["attempts"]] == [0]


@pytest.mark.usefixtures("pretend")
def test_a_start_without_a_success_in_range_is_given_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"start default/seed0, start default/seed1, default/one/seed0"):
        compare.main([str(written(tmp_path, warmstart={"accept": [0.0, 0.2], "tries": 1})), "--out", str(out)])
    assert not (out / "results.csv").exists()


def test_two_compares_in_one_folder_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another gagpo compare works in"):
            compare.main([str(written(tmp_path)), "--out", str(out), "--dry_run"])


def test_a_dry_run_prints_commands_that_train_accepts(tmp_path: Path, capsys: Any) -> None:
    matrix = written(tmp_path, tuning={"actor.adam.lr": [0.1, 0.2], "seeds": [7]}, warmstart={"steps": 2})
    assert compare.main([str(matrix), "--out", str(tmp_path / "out"), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 4 + 4
    assert lines[0].startswith("start default/seed7: gagpo warmstart --out ")
    assert "--actor.adam.lr 0.1" in lines[3]
    assert not (tmp_path / "out" / "cells").exists()


def test_a_ray_job_is_submitted_with_a_name_by_which_it_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_ADDRESS", "http://head:1")
    stopped: list[list[str]] = []
    monkeypatch.setattr(jobs.subprocess, "run", lambda words, **_: stopped.append(words))
    cell = Cell("default", "one", 3, tmp_path / "cell", tmp_path / "record", tmp_path / "recipe.yaml", None)
    words: list[list[str]] = []
    for _ in range(2):
        job = jobs.CellJob(cell, None, "ray", 1)
        words.append(list(job.next() or ()))
        job.started(1)
    assert words[0][:6] == ["ray", "job", "submit", "--address", "http://head:1", "--submission-id"]
    assert words[0][7:11] == ["--", *jobs.GAGPO]
    assert stopped == [["ray", "job", "stop", "--address", "http://head:1", words[0][6]]]
    assert words[1][6] != words[0][6]


def test_an_interrupted_cell_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    cell = Cell("default", "one", 3, tmp_path / "cell", tmp_path / "record", tmp_path / "recipe.yaml", None)
    (cell.folder / "checkpoints" / "global_step1").mkdir(parents=True)
    (cell.folder / "run.json").write_text(json.dumps({"state": "running"}))
    assert "--ckpt.load_enable" in (jobs.CellJob(cell, None, "local", 1).next() or ())
    (cell.folder / "checkpoints" / "global_step1").rmdir()
    (cell.folder / "metrics.jsonl").touch()
    assert "--ckpt.load_enable" not in (jobs.CellJob(cell, None, "local", 1).next() or ())
    assert not (cell.folder / "metrics.jsonl").exists()


def test_an_interrupted_start_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "start" / "made").mkdir(parents=True)
    config = compare_config(tmp_path)
    start = jobs.StartJob("default", 0, tmp_path / "start", tmp_path / "base.yaml", config, Warmstart({}))
    assert (start.next() or ())[len(jobs.GAGPO)] == "warmstart"
    assert not (tmp_path / "start" / "made").exists()


def compare_config(folder: Path) -> Any:
    from openrlhf_gagpo.config.resolve import resolve

    return resolve(["--config", str(tiny_vault.write_recipe(folder / "base.yaml", "model"))])


@pytest.fixture
def compared(tmp_path: Path, vault_model: Path) -> tuple[list[str], Path]:
    """Arguments of a comparison of real runs, three algorithms on two seeds, and its folder."""
    matrix = written(tmp_path, algorithms=ALGORITHMS | {"three": {"algo.advantage.estimator": "rloo"}})
    tiny_vault.write_recipe(
        tmp_path / "base.yaml",
        vault_model,
        **{"train.num_iterations": 1, "eval.steps": -1, "eval.before_train": False, "eval.greedy": "ends"},
        **{"ckpt.save_steps": -1, "report": False, "rollout.record": "none"},
    )
    return ["compare", str(matrix), "--out", str(tmp_path / "out"), "--jobs", "2"], tmp_path / "out"


def test_a_comparison_survives_a_kill_without_repeating_finished_cells(compared: tuple[list[str], Path]) -> None:
    argv, out = compared
    process = tiny_vault.start(argv)
    assert process.stdout is not None
    for _ in range(2):
        assert ": finished, " in process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    ends = [os.pidfd_open(int(child)) for child in children]
    process.kill()
    process.communicate()
    # A finished process makes its descriptor readable: nothing goes on without the comparison.
    for end in ends:
        assert select.select([end], [], [], 20)[0]
        os.close(end)

    done = {
        path: path.read_bytes()
        for path in out.glob("cells/*/*/*/run.json")
        if json.loads(path.read_text())["state"] == "finished"
    }
    assert 2 <= len(done) < 6
    again = tiny_vault.start(argv)
    printed, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors
    assert printed.count(": kept, ") == len(done)
    assert {path: path.read_bytes() for path in done} == done
    states = [json.loads(path.read_text())["state"] for path in out.glob("cells/*/*/*/run.json")]
    assert states == ["finished"] * 6
    html = (out / "report.html").read_text()
    assert "final eval/greedy_success" in html
    assert "http" not in html.replace("http://www.w3.org", "")
    assert str(REPOSITORY) not in (out / "results.csv").read_text()
    assert {key[:2] for key in numbers(out)} == {(name, seed) for name in ("one", "two", "three") for seed in "01"}

    # The finished runs alone give the same table.
    folders = sorted(str(path.parent) for path in done)
    finished = [str(path.parent) for path in sorted(out.glob("cells/*/*/*/run.json"))]
    assert set(folders) <= set(finished)
    assert compare.main([*finished, "--out", str(out / "again"), "--baseline", "gagpo"]) == 0
    names = {"one": "gagpo", "two": "grpo", "three": "rloo"}
    assert numbers(out / "again") == {(names[key[0]], *key[1:]): value for key, value in numbers(out).items()}

    # So does the archive, but for the last digits.
    assert compare.main([str(out / ARCHIVE), "--out", str(out / "archived")]) == 0
    archived = numbers(out / "archived")
    assert archived == {key: pytest.approx(value, rel=1e-4, nan_ok=True) for key, value in numbers(out).items()}
    assert (out / "archived" / ARCHIVE).read_bytes() == (out / ARCHIVE).read_bytes()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl.gz"
    for content in (
        b"no gzip",
        gzip.compress(b"{}\n"),
        gzip.compress(b"[1]\n"),
        gzip.compress(b""),
        gzip.compress(b'{"format":2}\n'),
        gzip.compress(b'{"format":1}\n{}\n')[:-9],
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"archive|reads format 1"):
            compare.main([str(file), "--out", str(tmp_path / "out")])
    with pytest.raises(ConfigError, match="cannot be read"):
        compare.main([str(tmp_path / "absent.jsonl.gz"), "--out", str(tmp_path / "out")])
