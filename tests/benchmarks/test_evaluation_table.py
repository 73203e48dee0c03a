"""The table of evaluations: every command of the script is one that the command line takes."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from openrlhf_gagpo.cli import env, warmstart
from openrlhf_gagpo.config import evaluating
from openrlhf_gagpo.config.resolve import resolve
from support.paths import REPOSITORY

PARSERS: dict[str, Any] = {
    "env": env.parse,
    "warmstart": warmstart.parse,
    "train": resolve,
    "eval": evaluating.resolve,
}


@pytest.mark.parametrize("name", ["vault", "alfworld", "webshop"])
def test_every_command_of_a_world_can_be_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    import evaluation_table

    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(evaluation_table, "gagpo", lambda *words: ran.append(words))
    monkeypatch.setattr(evaluation_table, "served", lambda model, max_len: nullcontext())
    script = evaluation_table.Script(name, tmp_path)
    script.prepare()
    script.evaluate()
    for module in ("evaluation_table", "recording"):
        sys.modules.pop(module)

    parsed = [PARSERS[command](words) for command, *words in ran]
    evaluations = [entry for entry in parsed if isinstance(entry, evaluating.EvaluationConfig)]
    assert len(evaluations) == len(script.evaluations) == 2 + 2 * 2 * 2
    assert {entry.policy.name for entry in evaluations} == {"expert", "random", "in_process", "endpoint"}
    assert {entry.sampling.temperature for entry in evaluations[2:]} == {0.0, 1.0}
    # One table compares what was played on the same tasks with the same prompts.
    assert len({(entry.split, entry.tasks, str(entry.rollout)) for entry in evaluations}) == 1
    assert evaluations[0].max_len == script.world.max_len
    assert all(line.startswith("gagpo ") for line in script.lines)
