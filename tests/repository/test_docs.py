"""The documentation is true: its commands parse, its files exist, its tables are current, its examples run."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agent_envs
from agent_envs.testing import check_env
from openrlhf_gagpo import credit
from openrlhf_gagpo.cli import compare, doctor, env, export, show, view, warmstart
from openrlhf_gagpo.cli import credit as credit_command
from openrlhf_gagpo.cli import main as cli
from openrlhf_gagpo.config import evaluating
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.credit.conformance import __main__ as conformance
from support import verl_standin
from support.models import model_folder
from support.paths import REPOSITORY

ROOT = REPOSITORY
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES = ROOT / "scripts" / "algorithm_tables.py"

PARSERS: dict[str, Callable[[Sequence[str]], Any]] = {
    "train": resolve,
    "eval": evaluating.parse,
    "warmstart": warmstart.parse,
    "show": show._parser().parse_args,
    "view": view.parse,
    "credit": credit_command.parse,
    "export": export.parse,
    "compare": compare.parse,
    "env": env.parse,
    "doctor": doctor.parser().parse_args,
}

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OUR_FILE = re.compile(
    r"(?:agent_envs|benchmarks|docs|examples|openrlhf_gagpo|requirements|scripts|tests)/[\w./-]+\.\w+"
)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every ``gagpo`` line in the page's bash blocks; continued lines are one, a pipe ends it."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("gagpo "):
                lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                words = list(lexer)
                end = next((i for i, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
                yield words[:end]


ALL_COMMANDS = [
    pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:90]) for page in PAGES for words in commands(page)
]


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_commands_parse(words, monkeypatch, visit_baseline):
    monkeypatch.chdir(ROOT)
    if "--help" not in words:
        PARSERS[words[1]]([str(visit_baseline) if word == "visit_baseline.py" else word for word in words[2:]])
    assert words[1] in cli.COMMANDS


def test_commands_are_found():
    assert PARSERS.keys() == cli.COMMANDS.keys()
    assert any("algo.advantage.step_coef" in str(case.values) for case in ALL_COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_exist(page):
    text = page.read_text(encoding="utf-8")
    assert [name for name in _OUR_FILE.findall(text) if not (ROOT / name).is_file()] == []
    assert [link for link in _LINK.findall(text) if not (page.parent / link).exists()] == []


def test_flags_of_the_page_for_newcomers_exist():
    text = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    named = set(re.findall(r"--([a-z_]+(?:\.\w+)*)", text))
    known = {*all_flags(), "help"}
    switches = {f"{head}{dot}no_{last}" for head, dot, last in (name.rpartition(".") for name in all_flags())}
    assert len(named) > 50
    assert named - known - switches == set()


def test_algorithm_tables_are_current():
    script = runpy.run_path(str(TABLES))
    text = script["PAGE"].read_text(encoding="utf-8")
    assert text == script["with_tables"](text), f"run: python {TABLES.relative_to(ROOT)}"
    assert "| `lambd` |" in text


def test_every_estimator_has_a_section():
    algorithms = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    names = runpy.run_path(str(TABLES))["_estimators"]()
    assert [name for name in names if not re.search(rf"^## .*`{name}`$", algorithms, re.MULTILINE)] == []


@pytest.fixture
def model(tmp_path):
    return str(model_folder(tmp_path / "model"))


@pytest.fixture
def courier(tmp_path):
    """File of the environment that ``docs/environments.md`` shows."""
    path = tmp_path / "courier.py"
    path.write_text(blocks(ROOT / "docs" / "environments.md", "python")[0])
    return str(path)


def test_the_example_environment_keeps_the_contract(courier):
    agent_envs.load_plugin(courier)
    for split in ("train", "valid"):
        check_env(lambda: agent_envs.make("courier"), split)
    check_env(lambda: agent_envs.make("courier", doors=3, max_steps=9), "train")
    with pytest.raises(ValueError, match="doors must be"):
        agent_envs.make("courier", doors=2)


def test_the_example_environment_works_in_the_commands_shown(courier, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("COLUMNS", "160")
    stands_for = {"courier.py": courier, "runs/courier-start": model, "runs/courier": str(tmp_path / "run")}
    shown = {}
    for words in commands(ROOT / "docs" / "environments.md"):
        if "courier" in words and words[1] != "warmstart":
            monkeypatch.setattr(sys, "stdin", io.StringIO("?\nquit\n"))
            assert cli.main([stands_for.get(word, word) for word in words[1:]]) == 0
            shown[" ".join(words[1:3])] = capsys.readouterr().out
    assert shown.keys() == {"env play", "env check", "train --config"}
    assert "the expert would: go" in shown["env play"]
    assert "train 96, valid 24" in shown["env check"]
    assert "courier" in shown["train --config"]


@pytest.fixture
def visit_baseline(tmp_path):
    """File of the estimator that ``docs/algorithms.md`` shows."""
    path = tmp_path / "visit_baseline.py"
    path.write_text(blocks(ROOT / "docs" / "algorithms.md", "python")[0])
    return path


def test_the_example_algorithm_computes_what_it_says(visit_baseline):
    options = runpy.run_path(str(visit_baseline))["VisitBaselineOptions"]
    states = ["ABC.", "ABD.", "AC."]
    rows = [(f"episode {i}", t, *path[t : t + 2]) for i, path in enumerate(states) for t in range(len(path) - 1)]
    last = np.array([end == "." for *_, end in rows])
    batch = credit.StepBatch.from_columns(
        group=["task"] * len(rows),
        traj=[row[0] for row in rows],
        step=[row[1] for row in rows],
        state=[row[2] for row in rows],
        next_state=[row[3] for row in rows],
        reward=[0, 0, 8, 0, 0, 0, 0, 8],
        terminated=last,
        truncated=np.zeros(len(rows), dtype=bool),
    )
    result = credit.get("visit_baseline")(batch, options(gamma=0.5, scale=2.0))
    # Returns 2, 4, 8 | 0, 0, 0 | 4, 8, each less the mean of the other visits of its state.
    assert result.advantage.tolist() == [0, 8, 0, -6, -8, 0, 6, 0]
    assert result.return_.tolist() == [2, 4, 8, 0, 0, 0, 4, 8]
    assert result.value is None


def test_the_example_algorithm_is_a_flag_of_the_command_line(visit_baseline, model, tmp_path):
    (words,) = (words for words in commands(ROOT / "docs" / "algorithms.md") if "visit_baseline" in words)
    stands_for = {
        "visit_baseline.py": str(visit_baseline),
        "runs/vault-start": model,
        "runs/visit-baseline": str(tmp_path / "run"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf_gagpo.cli.main", *(stands_for.get(word, word) for word in words[1:])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "160"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert lines["algo.advantage.estimator"][0] == "visit_baseline"
    assert float(lines["algo.advantage.scale"][0]) == 2


def test_the_example_steps_give_the_numbers_of_the_worked_example(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "credit.md"
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(page, "json")
    (tmp_path / "steps.jsonl").write_text(example)
    (words,) = (words for words in commands(page) if "steps.jsonl" in words)
    assert cli.main(words[1:]) == 0
    assert "8 of 8 steps" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "credit.jsonl").read_text().splitlines()]
    (shown,) = re.findall(r"Â = (.*)", (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8"))[-1:]
    expected = [float(number) for number in re.findall(r"-?[\d.]+", shown)]
    assert [row["advantage"] for row in rows if row["estimator"] == "gagpo"] == expected
    assert {row["estimator"] for row in rows} == {"gagpo", "grpo"}


def test_the_page_about_steps_lists_every_column():
    from openrlhf_gagpo.comparison import stepfile

    text = (ROOT / "docs" / "credit.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|.*\| (.*?) \|$", text, re.MULTILINE)
    listed = {name: absent for names, absent in rows for name in re.findall(r"`(\w+)`", names)}
    assert listed.keys() == {*stepfile._REQUIRED, *stepfile._OPTIONAL}
    assert {name for name, absent in listed.items() if absent == "required"} == set(stepfile._REQUIRED)


def test_the_examples_for_other_trainers_run(monkeypatch, capsys):
    alone, in_verl = blocks(ROOT / "docs" / "interop.md", "python")
    exec(compile(alone, "interop.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) >= 3
    made = verl_standin.modules()
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(verl_standin, "_REGISTERED", {})
    exec(compile(in_verl, "interop.md", "exec"), {})
    assert sorted(verl_standin._REGISTERED) == ["step_gagpo", "step_grpo"]
    assert made["verl.trainer.ppo.ray_trainer"].compute_advantage.__wrapped__ is verl_standin.compute_advantage


def test_the_fields_of_verl_are_those_listed():
    from dataclasses import fields

    from openrlhf_gagpo.interop.verl import Fields

    text = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
    table = text[text.index("| field |") : text.index("* Rows may come")]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE)))) == {
        item.name for item in fields(Fields)
    }


def test_the_adapted_environments_are_few_lines_that_run(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "adapters.md"
    lake, *others = blocks(page, "python")
    assert len([line for line in lake.splitlines() if line.strip()]) <= 15
    path = tmp_path / "lake.py"
    path.write_text(lake)
    agent_envs.load_plugin(str(path))
    check_env(lambda: agent_envs.make("frozen-lake"), "valid", sample=2)
    monkeypatch.setattr(sys, "stdin", io.StringIO("right\nquit\n"))
    (words,) = (words for words in commands(page) if words[1:3] == ["env", "play"])
    assert cli.main([str(path) if word == "lake.py" else word for word in words[1:]]) == 0
    assert "Walk from S" in capsys.readouterr().out
    for block in others[:2]:
        exec(compile(block, page.name, "exec"), {"__name__": "made_up_plugin"})
    assert {"hanoi", "mastermind", "far-vault", "connect-four"} <= set(agent_envs.names())


def test_the_conformance_commands_parse():
    lines = re.findall(
        r"^python -m openrlhf_gagpo.credit.conformance (.*)$", (ROOT / "docs" / "interop.md").read_text(), re.MULTILINE
    )
    assert len(lines) == 3
    for line in lines:
        conformance._parser().parse_args(line.split())
