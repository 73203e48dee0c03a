"""Whole runs of the local backend that replace groups without signal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openrlhf_gagpo import metrics as glossary
from openrlhf_gagpo.cli.main import main
from openrlhf_gagpo.rollout.records import read_credit, read_episodes
from openrlhf_gagpo.runfolder import RunFolder
from support import tiny_vault

_PLUGIN = Path(__file__).parents[2] / "support" / "paying_vault.py"


def _arguments(model: Path, run: Path, **changes: object) -> list[str]:
    settings = {
        "env__plugin": _PLUGIN,
        "env__name": "paying_vault",
        "env__options": json.dumps({"size": 3, "keys": 1, "train_tasks": 16, "valid_tasks": 2, "test_tasks": 0}),
        "rollout__batch_size": 3,
        "eval__steps": -1,
        "eval__before_train": False,
        "eval__after_train": False,
        "report": False,
        "actor__policy_loss_type": "cispo",
        "algo__dynamic_filtering_enable": True,
        "algo__dynamic_filtering_rule": "spread",
        "algo__dynamic_filtering_max_rounds": 6,
    }
    return tiny_vault.arguments(model, run, **(settings | changes))


@pytest.fixture(scope="module")
def whole(vault_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = tmp_path_factory.mktemp("refills") / "run"
    assert main(_arguments(vault_model, run)) == 0
    return RunFolder.open(run)


def test_tasks_are_drawn_until_enough_groups_differ(whole: RunFolder) -> None:
    rows = whole.metrics()
    assert glossary.undocumented(rows) == set()
    assert max(row["rollout/draws"] for row in rows) > 1
    for row in rows:
        episodes = read_episodes(whole.rollout_path(row["iteration"]))
        scores: dict[str, set[float]] = {}
        for episode in episodes:
            scores.setdefault(episode.group, set()).add(round(episode.episode_return, 6))
        assert len(episodes) == row["rollout/episodes"] == 4 * len(scores)
        assert row["rollout/groups_drawn"] == len(scores)
        kept = {group for group, values in scores.items() if len(values) > 1}
        assert row["rollout/groups_kept"] == len(kept) == 3
        credited = read_credit(whole.rollout_path(row["iteration"]))
        assert {group for group, _, _ in credited} == kept
        assert row["policy/rows_trained"] == len(credited)
        # No task comes twice, and only paying tasks can differ.
        tasks = {episode.group: episode.task for episode in episodes}
        assert len(set(tasks.values())) == len(tasks)
        assert all(int(tasks[group].rpartition("-")[2]) % 2 == 0 for group in kept)


def test_a_resumed_run_draws_what_an_uninterrupted_one_does(
    whole: RunFolder, vault_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(_arguments(vault_model, run, train__num_iterations=1)) == 0
    assert main(_arguments(vault_model, run, ckpt__load_enable=True)) == 0
    resumed = RunFolder.open(run)
    for iteration in (1, 2):
        one, other = (
            [(episode.task, episode.group, episode.env_seed) for episode in read_episodes(path)]
            for path in (resumed.rollout_path(iteration), whole.rollout_path(iteration))
        )
        assert one == other
    expected = load_file(whole.path / "model" / "model.safetensors")
    for name, value in load_file(run / "model" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0, msg=name)
