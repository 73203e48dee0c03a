"""``gagpo credit``: a run's own advantages exactly, options by name, output, page, and one sentence for bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from openrlhf_gagpo.cli.main import main
from openrlhf_gagpo.rollout.records import read_records, write_episodes
from openrlhf_gagpo.runfolder import RunFolder
from support import tiny_vault
from support.paths import REPOSITORY
from support.step_files import EXAMPLE, rows_of, write_rows

_QUIET = {"eval__steps": -1, "eval__before_train": False, "eval__after_train": False, "report": False}
PLUGIN = """
from dataclasses import dataclass

from openrlhf_gagpo import credit
from openrlhf_gagpo.options import declare


@dataclass(frozen=True)
class {cls}(credit.EstimatorOptions):
    {option}: float = declare(1.0, "factor of the reward")


@credit.register("{name}", {cls})
def scaled(batch, options):
    return credit.CreditResult.of(batch, options, advantage=options.{option} * batch.reward)
"""


@pytest.fixture(scope="module")
def trained(vault_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of two iterations, with options that are nobody's defaults."""
    run = tmp_path_factory.mktemp("trained") / "run"
    changes = {"algo__advantage__gamma": 0.9, "algo__advantage__lambd": 0.3, "ckpt__save_steps": -1}
    process = tiny_vault.start(tiny_vault.arguments(vault_model, run, **_QUIET, **changes))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "steps.jsonl", rows_of(EXAMPLE))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_keys_are_never_obeyed_by_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "state": f"\x1b[31m{row['state']}"} for row in rows_of(EXAMPLE)]
    assert main(["credit", str(write_rows(tmp_path / "steps.jsonl", rows)), "--estimator", "grpo"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31mA" in out


def test_nor_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["credit", str(tmp_path / "\x1b[31mabsent")]) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\\x1b[31mabsent" in err


def credit(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["credit", *map(str, argv)]) == 0
    return capsys.readouterr().out


def fail(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["credit", *map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gagpo: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_runs_own_advantages_come_out_bit_by_bit(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Estimator and options are those of the run, although none is given here."""
    folder = RunFolder.open(trained)
    out = credit(capsys, trained, "--iteration", "1-2", "--output", tmp_path / "out.jsonl")
    found = {(row["iteration"], row["group"], row["traj"], row["step"]): row for row in lines(tmp_path / "out.jsonl")}
    recorded = {
        (iteration, *key): values
        for iteration in (1, 2)
        for key, values in read_records(folder.rollout_path(iteration))[1].items()
    }
    assert len(recorded) == len(found) > 20
    assert any(values["advantage"] for values in recorded.values())
    for key, values in recorded.items():
        names = {"advantage": "advantage", "return": "return", "value": "value_proxy", "td_residual": "td_residual"}
        assert {name: values[name] for name in names} == {name: found[key][other] for name, other in names.items()}
    assert f"{len(found)} of {len(found)} advantages that the run recorded are exactly those of gagpo" in out
    assert "run, iterations 1 to 2" in out


def test_an_exported_iteration_has_exactly_the_same_credit(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), "--format", "jsonl", "--out", str(tmp_path / "steps.jsonl")]) == 0
    for source, name in ((trained, "run"), (tmp_path / "steps.jsonl", "file")):
        options = ("--gamma", "0.9", "--lambd", "0.3", "--invalid_penalty", "0", "--inadmissible_penalty", "0.1")
        credit(capsys, source, "--estimator", "gagpo", *options, "--output", tmp_path / name)
    exported = lines(tmp_path / "steps.jsonl")
    of_run, of_file = lines(tmp_path / "run"), lines(tmp_path / "file")
    assert [{"iteration": 2, **row} for row in of_file] == of_run
    names = ("advantage", "return", "value_proxy", "td_residual")
    own = [{name: row[name] for name in names} for row in of_run]
    assert [{name: row[name] for name in names} for row in exported] == own


def test_exported_messages_encode_to_what_the_policy_read(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), "--format", "messages", "--out", str(tmp_path / "sft.jsonl")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    episodes = read_records(RunFolder.open(trained).rollout_path(2))[0]
    steps = [step for episode in episodes for step in episode.steps]
    written = [row["messages"] for row in lines(tmp_path / "sft.jsonl")]
    assert [tokenizer.encode(prompt["content"]) for prompt, _ in written] == [step.prompt_ids for step in steps]
    assert [answer["content"] for _, answer in written] == [step.response for step in steps]


def test_the_last_iteration_is_the_default_and_its_diagnostics_are_those_logged(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = credit(capsys, trained, "--estimator", "gagpo", "--rows", "0")
    assert "run, iteration 2:" in out
    logged = RunFolder.open(trained).metrics()[-1]
    shown = {cells[1]: cells[3] for line in out.splitlines() if len(cells := line.split()) == 5}
    assert float(shown["advantage_std"]) == pytest.approx(logged["credit/advantage_std"], rel=1e-3)
    assert float(shown["singleton_share"]) == pytest.approx(logged["credit/singleton_share"], rel=1e-3, abs=1e-4)


def test_options_set_here_win_over_those_of_the_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    default, run, other = (
        credit(capsys, trained, *words)
        for words in (["--gamma", "0.95", "--lambd", "0.8"], [], ["--gamma", "0.9", "--lambd", "0.3"])
    )
    assert run == other != default
    assert "recorded" in run
    assert "recorded are" not in default


def test_a_file_of_recorded_rollouts(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = RunFolder.open(trained).rollout_path(2)
    whole = credit(capsys, trained, "--estimator", "grpo")
    alone = credit(capsys, path, "--estimator", "grpo")
    assert "iter_00002.jsonl.gz" in alone
    tail = whole[whole.index("diagnostics") :]
    assert tail in alone


def test_the_worked_example(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = credit(
        capsys,
        file,
        *("--estimator", "gagpo", "--estimator", "grpo", "--estimator", "gagpo"),
        *("--gamma", "0.5", "--lambd", "0.5", "--normalize", "none", "--rows", "3", "--output", tmp_path / "out.jsonl"),
    )
    assert "3 of 8 steps" in out
    assert "gagpo, grpo" in out
    found = lines(tmp_path / "out.jsonl")
    assert [row["advantage"] for row in found[:8]] == [-0.5, 2, 0, -1.5, -2, 0, 2, 0]
    assert [row["return"] for row in found[:8]] == [2, 4, 8, 0, 0, 0, 4, 8]
    assert [row["value_proxy"] for row in found[:8]] == [2, 2, 8, 2, 2, 0, 2, 8]
    assert [row["td_residual"] for row in found[:8]] == [-1, 2, 0, -1, -2, 0, 2, 0]
    assert list(found[8]) == [
        *("group", "traj", "step", "state", "estimator", "advantage", "return", "value_proxy", "td_residual", "keep")
    ]
    assert [row["td_residual"] for row in found[8:]] == [None] * 8
    assert {row["estimator"] for row in found[8:]} == {"grpo"}
    assert all(row["keep"] is True for row in found)


def test_switches_choices_and_numbers_by_name(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def advantages(*words: str) -> list[float]:
        credit(capsys, file, "--estimator", "grpo", *words, "--output", tmp_path / "o.jsonl")
        return [row["advantage"] for row in lines(tmp_path / "o.jsonl")]

    plain, centred = advantages(), advantages("--no_std_norm")
    assert centred != plain == advantages("--std_norm")
    assert centred[0] == pytest.approx(8 / 3)
    assert advantages("--statistics", "rows", "--no_std_norm") != centred


def test_the_page(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of([("<b>task</b>", *played[1:]) for played in EXAMPLE])
    write_rows(file, rows)
    words = [word for name in ("gagpo", "grpo", "rloo") for word in ("--estimator", name)]
    out = credit(capsys, file, *words, "--html", tmp_path / "page.html", "--rows", "5")
    html = (tmp_path / "page.html").read_text()
    assert html.startswith("<!doctype html>")
    assert f"page: {tmp_path / 'page.html'}" in out
    assert html.count("<figure>") == 2 + 3
    assert "gagpo, grpo" in html
    assert "5 of 8 steps" in html
    assert "&lt;b&gt;task" in html
    assert "<b>task" not in html
    assert 'src="http' not in html
    first = html
    credit(capsys, file, *words, "--html", tmp_path / "page.html", "--rows", "5")
    assert (tmp_path / "page.html").read_text() == first


@pytest.mark.parametrize("names", [("a2tgpo", "grpo"), ("grpo", "a2tgpo")])
def test_estimators_with_different_diagnostics(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gains = [{**row, "ig": 0.1 * number} for number, row in enumerate(rows_of(EXAMPLE))]
    path = write_rows(tmp_path / "gains.jsonl", gains)
    page = tmp_path / "page.html"
    out = credit(capsys, path, *(word for name in names for word in ("--estimator", name)), "--html", page)
    shown = next(line for line in out.splitlines() if "clip_scale_mean" in line).split()
    assert "-" in shown
    assert "clip_scale_mean" in page.read_text()


def test_numbers_are_whole_on_a_narrow_terminal(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = credit(capsys, file, "--estimator", "gagpo", "--estimator", "grpo", "--estimator", "gigpo")
    assert not re.search(r"\d…", out)


def test_what_is_read_is_not_written_over(file: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    assert "is the file that is read" in fail(capsys, file, "--estimator", "grpo", "--output", file)
    assert file.read_bytes() == before
    assert "lies in the run folder" in fail(capsys, trained, "--html", trained / "report.html")
    twice = file.with_name("out")
    assert "are both" in fail(capsys, file, "--estimator", "grpo", "--output", twice, "--html", twice)


def test_one_estimator_has_nobody_to_agree_with(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = credit(capsys, file, "--estimator", "gigpo", "--html", tmp_path / "page.html")
    assert "agreement" not in out
    assert "Agreement" not in (tmp_path / "page.html").read_text()


def test_estimators_of_others(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "scaled.py"
    plugin.write_text(PLUGIN.format(cls="Scaled", option="scale", name="scaled"))
    output = tmp_path / "o.jsonl"
    credit(capsys, file, "--plugin", plugin, "--estimator", "scaled", "--scale", "3", "--output", output)
    assert [row["advantage"] for row in lines(output)] == [0, 0, 24, 0, 0, 0, 0, 24]
    clash = tmp_path / "clash.py"
    clash.write_text(PLUGIN.format(cls="Clash", option="rows", name="clash"))
    assert "option rows of clash has the name of an argument" in fail(capsys, file, "--plugin", clash)


def test_bad_input_is_one_sentence(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grpo = ("--estimator", "grpo")
    assert "absent cannot be read: No such file" in fail(capsys, tmp_path / "absent", *grpo)
    assert "no run.json" in fail(capsys, tmp_path, *grpo)
    assert "no estimator is named" in fail(capsys, file)
    assert "unknown advantage estimator 'ppo2'; choose one of" in fail(capsys, file, "--estimator", "ppo2")
    refused = fail(capsys, file, *grpo, "--step_coef", "1")
    assert re.search(r"--step_coef is an option of .*gigpo.*, and none of them is compared", refused)
    assert "--gamma is 2.0; it must be between 0 and 1" in fail(capsys, file, "--estimator", "gagpo", "--gamma", "2")
    assert "--gamma wants a number, not 'x'" in fail(capsys, file, "--estimator", "gagpo", "--gamma", "x")
    assert "--statistics must be one of" in fail(capsys, file, *grpo, "--statistics", "x")
    contradiction = ("--estimator", "gagpo", "--monte_carlo", "--truncation", "bootstrap")
    assert "estimator gagpo: monte_carlo uses no later value" in fail(capsys, file, *contradiction)
    assert "unrecognized arguments: --nonsense" in fail(capsys, file, *grpo, "--nonsense")
    assert "--iteration chooses iterations of a run folder" in fail(capsys, file, *grpo, "--iteration", "1")
    assert "--rows is -1; it must be 0 or more" in fail(capsys, file, *grpo, "--rows", "-1")
    assert "--output /nowhere/o cannot be written" in fail(capsys, file, *grpo, "--output", "/nowhere/o")
    assert f"--html {tmp_path} cannot be written" in fail(capsys, file, *grpo, "--html", tmp_path)
    assert "there is no plugin file" in fail(capsys, file, *grpo, "--plugin", "absent.py")
    file.write_text(file.read_text().replace('"state": "D", ', ""))
    assert f"{file}, line 6 has no state; every step needs it" in fail(capsys, file, *grpo)


def test_bad_iterations_of_a_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--iteration is 'x'; give one iteration (3) or a range (2-5)" in fail(capsys, trained, "--iteration", "x")
    assert "no recorded iteration 3-9; recorded are 1 to 2" in fail(capsys, trained, "--iteration", "3-9")
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    folder = RunFolder.open(copy)
    folder.rollout_path(2).write_bytes(b"nonsense")
    assert "is not an episode file" in fail(capsys, copy)
    folder.rollout_path(2).unlink()
    folder.rollout_path(1).unlink()
    assert "has no recorded episodes; train with --rollout.record all" in fail(capsys, copy)


def test_advantages_that_the_run_did_not_record_that_way_are_counted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    path = RunFolder.open(copy).rollout_path(2)
    episodes, recorded = read_records(path)
    first = next(iter(recorded))
    recorded[first]["advantage"] += 1e-9
    write_episodes(path, episodes, recorded)
    assert f"{len(recorded) - 1} of {len(recorded)} advantages" in credit(capsys, copy)


def test_help_names_options_and_needs_no_scipy() -> None:
    code = (
        "import sys\n"
        "from openrlhf_gagpo.cli.main import main\n"
        "try: main(['credit', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'scipy', 'matplotlib', 'torch', 'transformers', 'ray', 'vllm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--invalid_penalty" in done.stdout
    assert "--estimator" in done.stdout
