"""What a matrix file may say, and what of it is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from openrlhf_gagpo.cli import compare, warmstart
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.experiment.cells import check_unchanged, plan
from openrlhf_gagpo.experiment.jobs import StartJob, write_json
from openrlhf_gagpo.experiment.matrix import read_matrix
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.schedule import iteration_tasks, training_requests
from support import tiny_vault
from support.paths import REPOSITORY

GOOD: dict[str, Any] = {
    "base": "base.yaml",
    "algorithms": {"one": {"algo.advantage.estimator": "gagpo"}, "two": {"algo.advantage.estimator": "grpo"}},
    "seeds": [0, 1],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_vault.write_recipe(tmp_path / "base.yaml", "model")
    return tmp_path


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in (GOOD | changes).items() if value is not ...}, sort_keys=False)
    )
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": [1]}, ["seed in", "did you mean seeds?"]),
        ({"base": ...}, ["base in", "wants the path of a recipe"]),
        ({"base": "gone.yaml"}, ["there is no file", "relative to the matrix file"]),
        ({"algorithms": ...}, ["algorithms in", "name: flags"]),
        ({"algorithms": {"a/b": {}}}, ["'a/b'", "becomes a folder"]),
        ({"algorithms": {"one": 3}}, ["algorithms.one in", "not 3"]),
        ({"algorithms": {"one": "gone.yaml"}}, ["algorithms.one in", "there is no file"]),
        ({"algorithms": {"one": {"train.seed": 3}}}, ["algorithms.one in", "train.seed", "for each cell"]),
        ({"settings": {}}, ["settings in", "name: flags"]),
        ({"settings": {"far": {"train": {"seed": 3}}}}, ["settings.far in", "train.seed"]),
        ({"common": [1]}, ["common in", "not [1]"]),
        ({"common": {"run_dir": "x"}}, ["common in", "run_dir"]),
        ({"baseline": "three"}, ["baseline in", "one of one, two"]),
        ({"seeds": ...}, ["seeds in", "whole numbers"]),
        ({"seeds": [1, 1]}, ["seeds in", "twice"]),
        ({"seeds": [True]}, ["seeds in", "whole numbers"]),
        ({"submit": "slurm"}, ["submit in", "local, ray"]),
        ({"primary": "eval/luck"}, ["primary in", "eval/success"]),
        ({"primary": "policy/loss"}, ["primary in", "metric of evaluations"]),
        ({"warmstart": {"accept": [0.5, 0.1]}}, ["warmstart.accept in", "[0.5, 0.1]"]),
        ({"warmstart": {"tries": 0}}, ["warmstart.tries in", "at least 1"]),
        ({"warmstart": {"seed": 0}}, ["warmstart in", "sets seed"]),
        ({"warmstart": {"steps": 2}, "common": {"actor.model_name_or_path": "m"}}, ["actor.model_name_or_path"]),
        ({"tuning": {"actor.adam.lr": [1, 2], "seeds": [1, 7]}}, ["tuning.seeds in", "1 in common", "flatter"]),
        ({"tuning": {"actor.adam.lr": [1, 2]}}, ["tuning.seeds in", "whole numbers"]),
        ({"tuning": {"seeds": [7]}}, ["tuning in", "one line"]),
        ({"tuning": {"actor.adam.lr": [1], "seeds": [7]}}, ["tuning.actor.adam.lr in", "two or more"]),
        ({"tuning": {"train.seed": [1, 2], "seeds": [7]}}, ["tuning in", "train.seed"]),
    ],
)
def test_what_a_matrix_file_cannot_say(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        read_matrix(written(folder, **changes))
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"common": {"rollout.hystory_length": 1}}, ["rollout.hystory_length in", "1-common.yaml", "did you mean"]),
        ({"algorithms": {"one": {"algo.advantage.estimator": "none"}}}, ["algo.advantage.estimator in"]),
        ({"tuning": {"actor.adam.lrr": [1, 2], "seeds": [7]}}, ["--actor.adam.lrr is not a flag"]),
        (
            {"algorithms": {"one": {}, "two": {"eval.tasks": 3}}},
            ["two and one differ in eval.tasks", "setting default"],
        ),
        ({"algorithms": {"one": {}, "two": {"env.max_steps": 3}}}, ["two and one differ in env.max_steps"]),
        ({"algorithms": {"one": {}, "two": {"rollout.batch_size": 4}}}, ["differ in rollout.batch_size"]),
    ],
)
def test_what_no_cell_could_run(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        plan(read_matrix(written(folder, **changes)), folder / "out")
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_layers_settings_and_cells(folder: Path) -> None:
    matrix = read_matrix(
        written(
            folder,
            # An option of one algorithm alone is dropped where another is chosen above it.
            common={"algo.advantage.lambd": 0.5},
            settings={"near": {"env.max_steps": 8}, "far": {"env.max_steps": 9}},
        )
    )
    made = plan(matrix, folder / "out")
    cells = made.final({})
    assert [cell.name for cell in cells][:3] == ["near/one/seed0", "near/two/seed0", "far/one/seed0"]
    assert len(cells) == 8
    assert cells[0].folder == folder / "out" / "cells" / "near" / "one" / "seed0"
    assert made.configs["near", "one"].get("algo.advantage.lambd") == 0.5
    assert [made.configs[setting, "two"].env.max_steps for setting in ("near", "far")] == [8, 9]
    assert made.configs["far", "two"].algo.advantage.estimator == "grpo"


def test_runs_of_one_seed_play_the_same_tasks_whatever_the_algorithm() -> None:
    tasks = [f"t{number}" for number in range(9)]
    orders = [[iteration_tasks(tasks, 4, iteration, seed) for iteration in (1, 2, 3)] for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]
    seeds = [[request.env_seed for request in training_requests(tasks[:2], 2, 1, seed)] for seed in (3, 3, 4)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_finished_cell_with_other_flags_is_refused(folder: Path) -> None:
    made = plan(read_matrix(written(folder)), folder / "out")
    cell = made.final({})[0]
    config = made.configs["default", "one"]
    RunFolder.create(cell.folder, config.to_dict(), "").set_state("finished")
    check_unchanged(cell, config)
    later = plan(read_matrix(written(folder, common={"actor.adam.lr": 0.5})), folder / "out")
    with pytest.raises(ConfigError, match=r"default/one/seed0 was run with actor.adam.lr 0.001, .* now says 0.5"):
        check_unchanged(cell, later.configs["default", "one"])


def test_a_start_follows_the_setting_and_refuses_other_flags(folder: Path) -> None:
    matrix = read_matrix(written(folder, warmstart={"steps": 3, "rollout.list_actions": True}))
    config = plan(matrix, folder / "out").configs["default", "one"]
    assert matrix.warmstart is not None

    def start(flags: dict[str, Any]) -> StartJob:
        how = type(matrix.warmstart)(flags)
        return StartJob("default", 4, folder / "start", folder / "base.yaml", config, how)

    settings = warmstart.parse(start({"steps": 3, "rollout.list_actions": True}).arguments(1004))
    assert (settings.env_name, settings.steps, settings.seed, settings.list_actions) == ("vault", 3, 1004, True)
    assert settings.env_options["max_steps"] == 10
    (folder / "start" / "model").mkdir(parents=True)
    write_json(folder / "start" / "start.json", {"flags": start({"steps": 3}).flags()})
    assert start({"steps": 3}).kept
    with pytest.raises(ConfigError, match=r"start of default/seed4 was made with steps 3, and the matrix now says 5"):
        start({"steps": 5})


def test_the_example_is_a_matrix(tmp_path: Path) -> None:
    path = REPOSITORY / "examples" / "studies" / "vault_smoke.yaml"
    made = plan(read_matrix(path), tmp_path)
    assert len(made.final(dict.fromkeys(made.recipes))) == 4
    assert len(made.tuning()) == 4


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["m.yaml"], "--out"),
        (["m.yaml", "--out", "x", "--jobs", "0"], "--jobs is 0"),
        (["m.yaml", "--out", "x", "--baseline", "a"], "write baseline: into the matrix"),
        (["run", "--out", "x", "--dry_run"], "only read"),
    ],
)
def test_arguments_that_cannot_be_used(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compare.parse(argv)
