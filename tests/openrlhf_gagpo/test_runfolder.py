from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.cli import main as cli
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.errors import RunFolderError
from openrlhf_gagpo.report import build_report
from openrlhf_gagpo.runfolder import RunFolder
from support.paths import DATA
from support.report_runs import CONFIG, PROMPT


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG, PROMPT, seed=3, command=["gagpo", "train"])


def test_created_folder_can_be_read_back(run: RunFolder) -> None:
    again = RunFolder.open(run.path)
    info = again.info()
    assert again.config() == CONFIG
    assert again.prompt() == PROMPT
    assert info["prompt_sha256"] == hashlib.sha256(PROMPT.encode()).hexdigest()
    assert (info["state"], info["seed"], info["command"]) == ("running", 3, ["gagpo", "train"])
    assert "numpy" in info["packages"]
    assert again.metrics() == again.evals() == again.rollout_iterations() == []
    assert run.rollouts_dir.is_dir()
    assert run.checkpoints_dir.is_dir()


def test_a_log_file_in_the_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("x")
    RunFolder.create(tmp_path, {}, "")


def test_create_refuses_an_existing_run_and_a_file(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.create(run.path, {}, "")
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.create(tmp_path / "file", {}, "")


def test_open_says_what_is_wrong(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.open(tmp_path / "absent")
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        RunFolder.open(tmp_path)
    for damaged in ("{", "[]", "{}"):
        run.info_path.write_text(damaged)
        with pytest.raises(RunFolderError, match="is damaged"):
            RunFolder.open(run.path)


def test_rows_keep_order_and_write_strict_json(run: RunFolder) -> None:
    run.append_metrics(1, {"policy/loss": math.nan, "policy/lr": np.float32(0.5), "rollout/episodes": np.int64(4)})
    run.append_metrics(2, {"policy/loss": math.inf, "policy/grad_norm": np.float64("nan")})
    run.append_eval(0, {"eval/success": 0.5}, split="valid")
    assert run.metrics() == [
        {"iteration": 1, "policy/loss": None, "policy/lr": 0.5, "rollout/episodes": 4},
        {"iteration": 2, "policy/loss": None, "policy/grad_norm": None},
    ]
    assert run.evals() == [{"iteration": 0, "split": "valid", "eval/success": 0.5}]


@given(cut=st.integers(min_value=0, max_value=200))
def test_a_file_cut_anywhere_is_read_and_continued(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    run = RunFolder.create(tmp_path_factory.mktemp("torn") / "run", {}, "")
    for i in (1, 2, 3):
        run.append_metrics(i, {"policy/loss": i / 4})
    whole = run.metrics_path.read_bytes()
    run.metrics_path.write_bytes(whole[: max(0, len(whole) - cut)])
    left = run.metrics()
    assert [row["iteration"] for row in left] == list(range(1, len(left) + 1))

    run.append_metrics(9, {})
    assert run.metrics() == [*left, {"iteration": 9}]
    run.resume(1)
    assert run.metrics() == left[:1]
    assert all(json.loads(line) for line in run.metrics_path.read_text().splitlines())


def test_damage_before_the_last_line_is_an_error_naming_the_line(run: RunFolder) -> None:
    run.append_metrics(1, {})
    with run.metrics_path.open("a") as stream:
        stream.write('{"iteration": 2, "pol\n{"iteration": 3}\n')
    with pytest.raises(RunFolderError, match="line 2"):
        run.metrics()


def test_resume_goes_back_to_the_iteration(run: RunFolder) -> None:
    for i in range(1, 5):
        run.append_metrics(i, {"policy/loss": 0.0})
        run.append_eval(i, {"eval/success": 0.0}, split="valid")
        run.rollout_path(i).touch()
    (run.rollouts_dir / "notes.txt").touch()
    run.set_state("interrupted")
    with run.metrics_path.open("a") as stream:
        stream.write('{"iteration": 5, "policy/lo')

    run.resume(2)
    run.resume(2)
    assert [row["iteration"] for row in run.metrics()] == [1, 2]
    assert [row["iteration"] for row in run.evals()] == [1, 2]
    assert run.rollout_iterations() == [1, 2]
    assert run.info()["state"] == "running"
    assert "ended" not in run.info()
    assert [entry["iteration"] for entry in run.info()["resumed"]] == [2, 2]


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed"), (SystemExit, "failed")]
)
def test_state_follows_the_block(run: RunFolder, error: type[BaseException], state: str) -> None:
    def train() -> None:
        with run.tracked():
            assert run.info()["state"] == "running"
            raise error("out of luck")

    with pytest.raises(error):
        train()
    assert run.info()["state"] == state
    assert ("out of luck" in run.info().get("error", "")) == (state == "failed")
    with run.tracked():
        pass
    assert run.info()["state"] == "finished"
    assert "error" not in run.info()


def test_a_disk_without_room_for_the_state_does_not_hide_the_cause(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    def train() -> None:
        with run.tracked():
            monkeypatch.setattr(Path, "replace", lambda *_: full(run.path))
            raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        train()
    assert run.info()["state"] == "running"
    assert not [path for path in run.path.iterdir() if path.suffix == ".tmp"]


def test_checkpoints_of_all_releases_are_found(run: RunFolder) -> None:
    (run.checkpoints_dir / ".global_step1.partial").mkdir()
    (run.checkpoints_dir / "_actor").mkdir()
    assert not run.has_checkpoint()
    for name in ("_actor/global_step1", "global_step2"):
        (run.checkpoints_dir / name).mkdir()
        assert run.has_checkpoint()
        (run.checkpoints_dir / name).rmdir()


OLD = DATA / "run_format1"
"""A run of release 0.1, before run folders had a number."""


def test_folders_of_the_first_release_still_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    run = RunFolder.open(folder)
    assert "format" not in run.info()
    assert [row["iteration"] for row in run.metrics()] == [1]
    assert cli.main(["show", str(folder)]) == 0
    page = capsys.readouterr().out
    assert "Iteration 1, episode 0" in page
    assert "advantage" in page
    assert build_report(folder).stat().st_size > 10_000
    # Its configuration is a recipe for today's flags, the deprecated one among them.
    config = resolve(["--config", str(folder / "config.yaml")])
    assert (config.algo.advantage.invalid_penalty, config.algo.advantage.inadmissible_penalty) == (0.0, 0.1)


def test_a_folder_of_a_newer_release_is_refused(run: RunFolder) -> None:
    info = run.info()
    run.info_path.write_text(json.dumps(info | {"format": info["format"] + 1}))
    with pytest.raises(RunFolderError, match=r"written by a newer release \(format 3, this one reads up to 2\)"):
        RunFolder.open(run.path)
