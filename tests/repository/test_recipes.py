"""Recipes and scripts: each recipe passes all checks on the machine it is for, and what the files name exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent_envs.search_qa.generator import generate as generate_questions
from agent_envs.search_qa.levels import LEVELS
from agent_envs.webshop.generator import generate as generate_shop
from openrlhf_gagpo import machine
from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.cli import env as env_command
from openrlhf_gagpo.cli import warmstart
from openrlhf_gagpo.cli.train import main as train
from openrlhf_gagpo.config.checks import check
from openrlhf_gagpo.config.families import families
from openrlhf_gagpo.config.resolve import Config, resolve
from openrlhf_gagpo.credit import registry as estimators
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.training.table import IG
from support.models import model_folder
from support.paths import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
HUNT = str(EXAMPLES / "external_env" / "number_hunt.py")
RECIPES = sorted((EXAMPLES / "recipes").glob("*.yaml"))
VARIANTS = sorted((EXAMPLES / "recipes").glob("*/*/*.yaml"))
BASES = {
    "vault": "vault_demo.yaml",
    "alfworld": "alfworld_qwen2.5_1.5b.yaml",
    "webshop": "webshop_qwen2.5_1.5b.yaml",
    "search_qa": "search_qa_qwen2.5_3b.yaml",
}
STUDIED = ("vault", "alfworld", "webshop")
"""Environments with ablations and grids of GAGPO."""
SCRIPTS = sorted((EXAMPLES / "scripts").glob("*.sh"))
NAMES = [path.stem for path in RECIPES]
PAPER = [name for name in NAMES if "qwen" in name and not name.startswith("search_qa")]
SEARCH = [name for name in NAMES if "qwen" in name and name.startswith("search_qa")]

_GPUS = re.compile(r"_(\d)gpu")


def gpus(name: str) -> int:
    if name == "own_model":
        return 1
    if "qwen" not in name:
        return 0
    found = _GPUS.search(name)
    return int(found[1]) if found else 2


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with data where the CPU recipes look for it, and a stub of a model."""
    pytest.importorskip("alfworld")
    pytest.importorskip("regex")
    pytest.importorskip("tantivy")
    from agent_envs.alfworld.generator import generate as generate_houses

    root = tmp_path_factory.mktemp("recipes")
    generate_shop(root / "data" / "webshop", 120, 0)
    generate_questions(root / "data" / "search", replace(LEVELS["tiny"], tasks=(30, 20, 20)))
    for split in ("train", "valid_seen"):
        generate_houses(root / "data" / "alfworld", split, 1, 0)
    model_folder(root / "model")
    return root


@pytest.fixture
def argv(workplace, monkeypatch):
    """Arguments of a dry run of a recipe, on a machine that has as many GPUs as its name says."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    monkeypatch.setenv("ALFWORLD_DATA", str(workplace / "data" / "alfworld"))
    monkeypatch.setenv("WEBSHOP_DATA", str(workplace / "data" / "webshop"))
    monkeypatch.setenv("SEARCH_QA_DATA", str(workplace / "data" / "search"))

    def arguments(name: str, *flags: str) -> list[str]:
        monkeypatch.setattr(machine, "gpus", lambda: gpus(name))
        monkeypatch.setattr(machine, "torch_has_cuda", lambda: True)
        config = str(EXAMPLES / "recipes" / f"{name}.yaml")
        # A recipe for an environment of the user's own is tried with one.
        own = ["--env.plugin", HUNT, "--env.name", "number-hunt", "--env.eval_split", "valid"]
        environment = own if name.startswith("own_") else []
        return ["--config", config, "--actor.model_name_or_path", "model", "--run_dir", "run", *environment, *flags]

    return arguments


def values(name: str) -> Config:
    return resolve(["--config", str(EXAMPLES / "recipes" / f"{name}.yaml")])


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_passes_a_dry_run(argv, name, capsys, monkeypatch):
    # Wide enough that the table cuts nothing off.
    monkeypatch.setenv("COLUMNS", "200")
    assert train(argv(name, "--dry_run")) == 0
    assert name.split("_")[0].replace("own", "number-hunt") in capsys.readouterr().out
    plan = check(resolve(argv(name)))
    assert plan.gpus == (0 if plan.backend == "local" else max(gpus(name), 1))
    assert plan.device == ("cuda" if gpus(name) else "cpu")


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """The machine has neither data nor models, nor a GPU."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "XDG_CACHE_HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "COLUMNS": "200",
        "CUDA_VISIBLE_DEVICES": "",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("ALFWORLD_DATA", "WEBSHOP_DATA", "SEARCH_QA_DATA", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize("path", [*RECIPES, *VARIANTS], ids=lambda path: "-".join(path.with_suffix("").parts[-3:]))
def test_every_recipe_can_be_shown_on_a_machine_that_has_nothing(path, capsys):
    assert train(["--config", str(path), "--dry_run"]) == 0
    out = capsys.readouterr().out
    config = resolve(["--config", str(path)])
    for_gpus = config.vllm.enable_sleep
    wanted = [(str(config.actor.num_gpus_per_node), "" if for_gpus else "logical ")]
    bundles = re.findall(r"(\d+) bundles? of 1 (logical )?GPU", out)
    assert bundles == ([] if BACKENDS[config.backend].one_process else wanted)
    assert ("this machine has no GPU" in out) == for_gpus
    assert ("estimated memory of one device" in out) == ("Qwen/" in (config.actor.model_name_or_path or ""))
    assert ("no estimate of memory" in out) != ("estimated memory" in out)


@pytest.mark.usefixtures("nothing")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("alfworld_cpu", "no ALFWorld games under data/alfworld/json_2.1.1: make some with `gagpo env generate"),
        ("webshop_cpu", "data/webshop has no items_shuffle.json and no items_ins_v2.json: run 'gagpo env generate"),
    ],
    ids=["alfworld", "webshop"],
)
def test_data_that_is_not_there_is_a_warning_of_a_dry_run_and_stops_a_run(name, said, capsys):
    model_folder(Path("model"))
    line = ["--config", str(EXAMPLES / "recipes" / f"{name}.yaml"), "--actor.model_name_or_path", "model"]
    assert train([*line, "--dry_run"]) == 0
    _, missing = capsys.readouterr().out.split("missing on this machine\n")
    assert said in missing
    with pytest.raises(ConfigError, match=re.escape(said)):
        train(line)


@pytest.mark.parametrize("name", [name for name in NAMES if gpus(name) == 0])
def test_cpu_recipes_run_on_the_local_backend_too(argv, name):
    config = resolve(argv(name, "--backend", "local"))
    assert check(config).gpus == 0
    assert config.train.threads == 1


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_those_of_the_paper(name):
    config = values(name)
    alfworld = name.startswith("alfworld")
    assert (config.rollout.batch_size, config.rollout.n_samples_per_prompt) == (16, 8)
    assert config.env.max_steps == (50 if alfworld else 15)
    assert config.rollout.max_new_tokens == 512
    assert config.data.max_len - 512 == (2048 if alfworld else 4096)
    assert config.train.batch_size == (256 if alfworld else 64)
    assert config.actor.adam.lr == 1e-6
    assert (config.algo.kl.init_coef, config.algo.kl.use_loss, config.algo.kl.estimator) == (0.01, True, "k3")
    assert config.train.num_iterations == 160
    assert config.eval.temperature == 0.4
    assert config.rollout.history_length == 2
    assert config.actor.model_name_or_path == f"Qwen/Qwen2.5-{'7B' if '7b' in name else '1.5B'}-Instruct"
    options = config.options(families()[0])
    assert (options.invalid_penalty, options.invalid_penalty_mode) == (0.1, "local")
    assert "ntested on a GPU" in (EXAMPLES / "recipes" / f"{name}.yaml").read_text()


def test_a_recipe_says_in_its_name_what_it_trains_with():
    for name in PAPER:
        config = values(name)
        estimator = name.rsplit("_", 1)[1] if name.endswith(("gigpo", "grpo", "rloo")) else "gagpo"
        options = config.options(families()[0])
        assert config.algo.advantage.estimator == estimator
        # One ratio per action is GAGPO's; the baselines have one per token.
        assert config.actor.policy_loss_type == ("gspo" if estimator == "gagpo" else "ppo")
        if estimator in ("gagpo", "gigpo"):
            assert options.gamma == 0.95
        if estimator != "gagpo":
            # As verl-agent: statistics over the steps of a group, and its bound on the loss.
            assert (options.statistics, config.actor.dual_clip) == ("rows", 3.0)
        if estimator == "gagpo":
            assert options.lambd == 0.8
        if estimator == "gigpo":
            assert options.gigpo_mode == ("mean_std_norm" if name.startswith("alfworld") else "mean_norm")


def settings(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "base:"))]


def test_search_recipes_have_the_published_settings():
    def plan(name: str) -> tuple[object, ...]:
        config = values(name)
        sizes = config.rollout.batch_size, config.rollout.n_samples_per_prompt, config.env.max_steps
        return (
            config.algo.advantage.estimator,
            config.rollout.context,
            *sizes,
            config.algo.kl.init_coef,
            config.actor.adam.lr,
        )

    published = {
        "search_qa_qwen2.5_3b_grpo_8gpu": ("grpo", "transcript", 512, 5, 3, 0.001, 1e-6),
        "search_qa_qwen2.5_7b_grpo_8gpu": ("grpo", "transcript", 512, 5, 3, 0.001, 1e-6),
        "search_qa_qwen2.5_7b_gigpo_8gpu": ("gigpo", "window", 256, 5, 4, 0.001, 1e-6),
        "search_qa_qwen3_4b_a2tgpo_8gpu": ("a2tgpo", "transcript", 64, 16, 7, 0.0, 1e-6),
        "search_qa_qwen2.5_7b_igpo_8gpu": ("igpo", "transcript", 32, 16, 10, 0.001, 1e-6),
    }
    ours = {"search_qa_qwen2.5_3b": "window", "search_qa_qwen2.5_3b_transcript": "transcript"}
    assert {name: plan(name) for name in published} == published
    assert {name: plan(name)[:2] for name in ours} == {name: ("gagpo", context) for name, context in ours.items()}
    assert set(SEARCH) == {*published, *ours}
    gigpo = values("search_qa_qwen2.5_7b_gigpo_8gpu")
    assert gigpo.options(families()[0]).similarity == 0.9
    assert gigpo.env.options["state_key"] == "observation"
    assert values("search_qa_qwen2.5_7b_igpo_8gpu").env.options["reward"] == "f1"
    a2tgpo = values("search_qa_qwen3_4b_a2tgpo_8gpu")
    assert (a2tgpo.actor.policy_loss_type, a2tgpo.actor.eps_clip_low_high) == ("gspo", [3e-3, 4e-3])
    for name in SEARCH:
        assert not values(name).rollout.list_actions
        assert "ntested on a GPU" in (EXAMPLES / "recipes" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: "-".join(path.with_suffix("").parts[-3:]))
def test_a_variant_differs_from_its_base_in_one_to_three_lines(path):
    base = f"../../{BASES[path.parent.name]}"
    sibling = re.search(r"^base: (\w+\.yaml)$", path.read_text(), re.MULTILINE)
    # A variant of a method builds on that method's file.
    origin = path.with_name(sibling[1]) if sibling else path
    assert f"\nbase: {base}\n" in origin.read_text()
    assert 1 <= len(settings(path)) <= 3
    config = resolve(["--config", str(path)])
    changed = {name for name in config.names() if config.origin(name) == str(path)}
    assert len(changed) == sum(line.count(": ") - ("{" in line) for line in settings(path))
    if path.parent.name != "vault":
        assert "Untested on a GPU" in path.read_text()


def test_every_method_has_a_recipe_for_every_environment():
    """Except those that ask for golden answers, which search QA alone has."""
    every = {name: estimators.get(name) for name in estimators.names()}
    built_in = {name for name, entry in every.items() if entry.compute.__module__.startswith("openrlhf_gagpo.")}
    for environment in BASES:
        answers = {IG} if environment == "search_qa" else set()
        ours = {name for name in built_in if every[name].needs <= BACKENDS["local"].columns | answers}
        folder = EXAMPLES / "recipes" / "methods" / environment
        found = {path.stem: resolve(["--config", str(path)]).algo.advantage.estimator for path in folder.glob("*.yaml")}
        assert set(found.values()) == ours
        assert ours <= set(found)


def test_ablations_are_those_that_the_page_lists():
    page = (REPOSITORY / "docs" / "algorithms.md").read_text()
    table = page[
        page.index("Settings that reproduce the paper's ablations") : page.index(
            "With `invalid_penalty_mode reward` all of this"
        )
    ]
    for environment in STUDIED:
        paths = sorted((EXAMPLES / "recipes" / "ablations" / environment).glob("*.yaml"))
        lines = [line for path in paths for line in settings(path)]
        words = {line.removeprefix("algo.advantage.").replace(": true", "").replace(": ", " ") for line in lines}
        listed = set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
        # Both give the same numbers, and the Bellman values are a method of their own.
        assert words == listed - {"lambd 1", "value bellman"}


def test_grids_vary_one_of_gamma_and_lambda():
    gammas = [(gamma, 0.8) for gamma in (0.9, 0.95, 0.99, 1.0)]
    wanted = {*gammas, *((0.95, lambd) for lambd in (0.0, 0.5, 0.8, 0.95, 1.0))}
    for environment in STUDIED:
        configs = [
            resolve(["--config", str(path)]).algo.advantage
            for path in (EXAMPLES / "recipes" / "grids" / environment).glob("*.yaml")
        ]
        assert {(config.gamma, config.lambd) for config in configs} == wanted
        assert len(configs) == 9


@pytest.mark.parametrize("name", [path.stem for path in VARIANTS if path.parts[-3:-1] == ("methods", "vault")])
def test_methods_pass_a_dry_run_on_the_vault(argv, name):
    check(resolve(argv(f"methods/vault/{name}")))


def test_all_that_is_promised_is_there():
    wanted = {
        f"{env}_qwen2.5_{end}"
        for env in ("alfworld", "webshop")
        for end in (
            *(f"{size}{count}" for size in ("1.5b", "7b") for count in ("", "_1gpu", "_8gpu")),
            *(f"1.5b_{baseline}" for baseline in ("gigpo", "grpo", "rloo")),
        )
    }
    assert set(PAPER) == wanted
    assert {"alfworld_cpu", "search_qa_cpu", "webshop_cpu", "vault_demo"} <= set(NAMES)


def commented(path: Path) -> list[list[str]]:
    """Words of the commands in a recipe's comments, behind "gagpo"."""
    text = path.read_text().replace("\\\n#  ", "")
    return [shlex.split(line)[1:] for line in re.findall(r"^#   (gagpo .*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("own_")])
def test_commands_for_an_environment_of_ones_own_parse(name, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    stand = {"FILE": HUNT, "NAME": "number-hunt", "SPLIT": "valid", "MODEL": "model"}
    commands = [[stand.get(word, word) for word in words] for words in commented(EXAMPLES / "recipes" / f"{name}.yaml")]
    parse = {"env": env_command.parse, "warmstart": warmstart.parse, "train": resolve}
    assert commands[-1][0] == "train"
    for command, *flags in commands:
        settings = parse[command](flags)
        if command == "warmstart":
            # The model must meet the prompts that it was made for.
            config = values(name)
            assert settings.history_length == config.rollout.history_length
            assert settings.list_actions == config.rollout.list_actions


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if not path.stem.startswith("own_")], ids=lambda path: path.name
)
def test_commands_in_comments_parse_and_fit_the_recipe(path, tmp_path):
    config, commands = values(path.stem), commented(path)
    assert bool(commands) == path.stem.endswith(("_cpu", "_demo"))
    for command, *flags in commands:
        if command == "env":
            assert str(env_command.parse(flags).out) == config.env.options["data_dir"]
        else:
            settings = warmstart.parse(flags)
            replace(settings, out=tmp_path / "start").check()
            assert settings.env_name == config.env.name
            assert config.actor.model_name_or_path in (None, str(settings.out))
            # The model must meet the prompts that it was made for.
            assert settings.history_length == config.rollout.history_length
            assert settings.list_actions == config.rollout.list_actions
            assert settings.env_options.items() <= {**config.env.options, "max_steps": config.env.max_steps}.items()


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Runs a script with a stand-in for Ray; returns status, the words that Ray was given, and stderr."""
    stand_in = tmp_path / "bin" / "ray"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    path = os.pathsep.join([str(stand_in.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()

    def run(script: str, *words: str, **extra: str) -> tuple[int, list[str], str]:
        done = subprocess.run(
            [str(EXAMPLES / "scripts" / script), *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path, **extra},
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("script", "recipe", "first", "flag"),
    [
        ("train_vault_ray.sh", "vault_demo", "data", ("--actor.model_name_or_path", "{data}")),
        ("train_alfworld_ray.sh", "alfworld_qwen2.5_1.5b", "data", ("--env.options", "data_dir={data}")),
        ("train_webshop_ray.sh", "webshop_qwen2.5_1.5b", "data", ("--env.options", "data_dir={data}")),
        ("train_search_qa_ray.sh", "search_qa_qwen2.5_3b", "data", ("--env.options", "data_dir={data}")),
    ],
)
def test_scripts_submit_their_recipe_with_absolute_paths(submitted, tmp_path, script, recipe, first, flag):
    status, words, err = submitted(script, first, "runs/x", "--train.num_iterations", "2")
    assert (status, err) == (0, "")
    flags = words[words.index("openrlhf_gagpo.cli.train") + 1 :]
    expected = [word.format(data=tmp_path / "data") for word in flag]
    assert flags == [
        *("--config", str(EXAMPLES / "recipes" / f"{recipe}.yaml"), "--run_dir", str(tmp_path / "runs" / "x")),
        *(*expected, "--train.num_iterations", "2"),
    ]
    resolve(flags)
    status, words, err = submitted(script)
    assert (status != 0, words) == (True, [])
    assert "first argument: folder" in err


def test_another_recipe_can_be_submitted(submitted, tmp_path):
    other = "webshop_qwen2.5_7b_8gpu.yaml"
    _, words, _ = submitted("train_webshop_ray.sh", "data", "runs/x", RECIPE=other)
    assert str(EXAMPLES / "recipes" / other) in words
    (tmp_path / "own.yaml").write_text("base: data\n")
    _, words, _ = submitted("submit.sh", "own.yaml", "runs/x", RAY_JOB_ADDRESS="http://head:1")
    assert words[: words.index("--")] == ["job", "submit", "--address", "http://head:1"]
    assert str(tmp_path / "own.yaml") in words
    status, _, err = submitted("submit.sh", "absent.yaml", "runs/x")
    assert (status, err) == (2, "there is no recipe absent.yaml; give a file or a name in examples/recipes\n")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_recipes_that_scripts_name_exist(path):
    named = re.findall(r"[\w.]+\.yaml", path.read_text())
    assert [name for name in named if not (EXAMPLES / "recipes" / name).is_file()] == []
