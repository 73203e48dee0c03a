"""The conformance command: ours pass, wrong ones fail, bad input is one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from openrlhf_gagpo.credit.conformance.__main__ import main
from openrlhf_gagpo.credit.conformance.cases import cases
from support.paths import REPOSITORY, SUPPORT

MODULE = "support.conforming"
CHECKED = sorted({case.estimator for case in cases() if case.quantity == "advantage"})


def check(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[str]]:
    status = main(argv)
    captured = capsys.readouterr()
    return status, (captured.out + captured.err).splitlines()


@pytest.mark.parametrize("name", CHECKED)
def test_ours_pass_every_case(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = check(capsys, f"{MODULE}:{name}")
    count = sum(case.estimator == name and case.quantity == "advantage" for case in cases())
    assert (status, lines[-1]) == (0, f"{count} of {count} cases passed")
    assert len(lines) == count + 1
    assert all(line.startswith("pass  ") and "largest deviation" in line for line in lines[:-1])


def test_a_wrong_discount_fails_where_it_matters(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = check(capsys, f"{MODULE}:undiscounted", "--estimator", "gagpo")
    assert status == 1
    by_gamma = {case.name: case.options().get("gamma") for case in cases()}
    outcomes = {line.split()[1]: line.split()[0] for line in lines[:-1]}
    assert all(outcome == "pass" for name, outcome in outcomes.items() if by_gamma[name] == 1.0)
    assert sum(outcome == "FAIL" for outcome in outcomes.values()) > 100


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("in_another_order", "largest deviation"),
        ("one_too_many", "returned shape"),
        ("broken", "raised KeyError: 'no such\\ncolumn'"),
    ],
)
def test_what_else_fails(function: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = check(capsys, f"{MODULE}:{function}", "--estimator", "grpo")
    assert status == 1
    failed = [line for line in lines if line.startswith("FAIL")]
    assert failed
    assert all(problem in line for line in failed)


def test_tolerances(capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = check(capsys, f"{MODULE}:undiscounted", "--estimator", "gagpo", "--atol", "1e9")
    assert status == 0


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["nonsense"], "'nonsense' is not MODULE:FUNCTION; write for example"),
        (["no_such_module:f"], "no_such_module cannot be imported: ModuleNotFoundError"),
        ([f"{MODULE}:absent"], f"{MODULE} has no function absent; check the name"),
        ([f"{MODULE}:not_a_function"], "has no function not_a_function"),
        ([f"{MODULE}:broken"], "broken is not the name of an estimator with cases; set --estimator to one of gagpo"),
        ([f"{MODULE}:grpo", "--estimator", "grpo2"], "there are no cases of 'grpo2'; set --estimator to one of"),
    ],
)
def test_bad_input_is_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = check(capsys, *argv)
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("conformance: error: ")
    assert sentence in lines[0]


def test_list_names_estimators_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = check(capsys, "--list")
    assert status == 0
    assert sorted(line.partition(":")[0] for line in lines) == CHECKED
    assert any("grpo.no_std (24)" in line for line in lines)


def test_the_command_in_a_process_of_its_own() -> None:
    """Other people's modules are found in the folder that the command is called from."""
    command = [sys.executable, "-m", "openrlhf_gagpo.credit.conformance", "conforming:rloo"]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    done = subprocess.run(command, cwd=SUPPORT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "39 of 39 cases passed"
