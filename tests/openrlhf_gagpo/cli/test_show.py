from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf_gagpo.cli.main import main as gagpo
from openrlhf_gagpo.cli.show import main
from openrlhf_gagpo.report.episodes import extremes, load_episodes
from openrlhf_gagpo.rollout.records import write_episodes
from openrlhf_gagpo.runfolder import RunFolder
from support.report_runs import episode, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "run", iterations=3)


def show(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def fail(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gagpo: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_default_is_the_first_episode_of_the_last_iteration(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    out = show(capsys, str(run.path))
    assert "Iteration 3, episode 0 of 0 to 7" in out
    assert "solved, 4 steps, return 1, score 1" in out
    assert "> open [the] door" in out
    assert "malformed response" in out
    assert "inadmissible action" in out
    assert "reward 1, advantage 0.5, return 1" in out
    assert "The vault is open." in out


def test_choosing_an_episode(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert "episode 5 of 0 to 7" in show(capsys, str(run.path), "--iteration", "2", "--episode", "5")
    assert "episode 0 of 0 to 7" in show(capsys, str(run.path), "--iteration", "1", "--best")
    worst = show(capsys, str(run.path), "--iteration", "1", "--worst")
    assert "episode 1 of 0 to 7" in worst
    assert "step limit" in worst


def test_errors_are_one_sentence(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no run folder" in fail(capsys, str(tmp_path / "absent"))
    assert "no run.json" in fail(capsys, str(tmp_path))
    assert "recorded are iterations 1 to 3" in fail(capsys, str(run.path), "--iteration", "9")
    assert "episodes 0 to 7, not 8" in fail(capsys, str(run.path), "--episode", "8")
    assert "not -1" in fail(capsys, str(run.path), "--episode", "-1")


def test_no_and_damaged_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path / "run", {}, "")
    assert "no recorded episodes" in fail(capsys, str(run.path))
    run.rollout_path(1).write_bytes(b"nonsense")
    assert "not gzip-compressed" in fail(capsys, str(run.path))
    write_episodes(run.rollout_path(1), [])
    assert "no episodes in its record" in fail(capsys, str(run.path))


def test_faulted_episode_without_steps_or_credit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path / "run", {}, "")
    broken = episode(0, success=False, steps=0)
    broken.end_reason, broken.error = "env_fault", "the engine died"
    write_episodes(run.rollout_path(4), [broken, episode(1, success=False)])
    assert "environment failure: the engine died, 0 steps" in show(capsys, str(run.path))
    assert "episode 1 of 0 to 1" in show(capsys, str(run.path), "--worst")


def test_text_that_no_encoding_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path / "run", {}, "")
    write_episodes(run.rollout_path(1), [episode(0, success=True, observation="a \ud800 b")])
    assert gagpo(["show", str(run.path)]) == 0
    assert "a \\ud800 b" in capsys.readouterr().out


def test_best_means_the_same_in_help_and_report(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "the best episode by success, then return" in words
    assert "the worst episode by success, then return" in words
    labels = [label for label, _ in extremes(load_episodes(run, 1))]
    assert labels == ["best (success, then return)", "worst (success, then return)"]


def test_unknown_flag_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--best", "--worst"])
    capsys.readouterr()


def test_the_tracebacks_of_environment_failures_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path / "run", {}, "")
    run.add_fault("aa11", "EnvFault: lost", 'Traceback\n  File "env.py", line 3\nKeyError: [lost]')
    run.add_fault("aa11", "EnvFault: again", "another text is not kept")
    assert main([str(run.path), "--faults"]) == 0
    page = capsys.readouterr().out
    assert 'File "env.py", line 3' in page
    assert "KeyError: [lost]" in page
    assert "1 kinds of environment failure" in page
    assert "another text" not in page


def test_a_terminal_obeys_nothing_that_an_environment_or_a_model_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.create(tmp_path / "run", {}, "")
    played = episode(0, success=True, observation="\x1b[2Jgone")
    played.steps[0].action = "\x1b]0;title\x07"
    played.steps[0].response = "\x9b31m"
    played.task, played.extra = "task\x1b[1m", {"final_observation": "\rover"}
    write_episodes(run.rollout_path(1), [played])
    out = show(capsys, str(run.path))
    assert not any(mark in out for mark in "\x1b\x07\x9b\r")
    for words in ("\\x1b[2Jgone", "\\x1b]0;title\\x07", "\\x9b31m", "task\\x1b[1m", "\\rover"):
        assert words in out
    run.add_fault("aa11", "EnvFault: \x1b[5m", "Traceback")
    assert "\\x1b[5m" in show(capsys, str(run.path), "--faults")


@pytest.mark.parametrize(("residual", "shown"), [(0.0, False), (0.25, True)])
def test_a_quantity_that_the_estimator_lacks_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], residual: float, shown: bool
) -> None:
    run = RunFolder.create(tmp_path / "run", {}, "")
    played = [episode(n, success=True) for n in range(2)]
    credit = {
        (e.group, e.trajectory, s.index): {"advantage": 0.0, "td_residual": residual if e is played[1] else 0.0}
        for e in played
        for s in e.steps
    }
    write_episodes(run.rollout_path(1), played, credit)
    out = show(capsys, str(run.path))
    assert "advantage 0" in out
    assert ("td residual" in out) == shown
