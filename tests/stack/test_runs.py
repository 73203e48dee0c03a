"""Whole runs on the real stack: the submitted script, ALFWorld, kill -9 and resume, Ctrl-C, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from openrlhf_gagpo.experiment.jobs import read_json
from openrlhf_gagpo.metrics import undocumented
from openrlhf_gagpo.rollout.records import read_credit, read_episodes
from openrlhf_gagpo.runfolder import RunFolder
from support.models import make_model
from support.paths import REPOSITORY

# A random policy earns nothing, and none of its actions is possible; but some of its answers end in time, and a penalty
# on the others gives its groups a spread to learn from.
SIGNAL = ("--algo.advantage.no_drop_reward_free_groups", "--algo.advantage.invalid_penalty", "0.1")
# In which all processes of a run that is told to stop are gone: ten seconds, but other tests may have the cores too.
GONE_S = 30.0
RECIPE = str(REPOSITORY / "examples/recipes/vault_demo.yaml")


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_JOB_ADDRESS")}
    return kept | {"PYTHONPATH": path, "PATH": binaries} | extra


def train(*flags: str, **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "openrlhf_gagpo.cli.train", *flags],
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 420) -> str:
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return output


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 420, pause: float = 0.1
) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("the run did not get there in time")
        time.sleep(pause)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def assert_all_gone(processes: list[psutil.Process], timeout: float = 100) -> None:
    _, alive = psutil.wait_procs(processes, timeout=timeout)
    left = [" ".join(item.cmdline())[:120] or item.name() for item in alive if item.is_running()]
    for item in alive:
        item.kill()
    assert not left, left


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def assert_complete(folder: Path, iterations: int) -> RunFolder:
    run = RunFolder.open(folder)
    assert run.info()["state"] == "finished"
    rows = run.metrics()
    assert [row["iteration"] for row in rows] == list(range(1, iterations + 1))
    assert not undocumented([*rows, *run.evals()])
    for row in rows:
        assert row["policy/rows_trained"] == row["rollout/steps"]
        assert row["policy/sampling_logprob_diff_max"] < 1e-4
    assert run.rollout_iterations() == list(range(1, iterations + 1))
    for iteration in run.rollout_iterations():
        episodes = read_episodes(run.rollout_path(iteration))
        assert sum(len(episode.steps) for episode in episodes) == rows[iteration - 1]["rollout/steps"]
        assert rows[iteration - 1]["policy/rows_trained"] == len(read_credit(run.rollout_path(iteration)))
    assert (folder / "report.html").stat().st_size > 10_000
    assert run.prompt()
    return run


def assert_trained(run: RunFolder, start: Path) -> None:
    """The exported folder loads in transformers, as the starting one did in vLLM, and holds new weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoTokenizer.from_pretrained(run.model_dir).get_vocab() == AutoTokenizer.from_pretrained(start).get_vocab()
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (run.model_dir, start)]
    moved = [float((a - b).abs().max()) for a, b in zip(*(model.parameters() for model in models), strict=True)]
    assert max(moved) > 1e-4


MATRIX = """
base: {recipe}
common:
  backend: local
  actor.model_name_or_path: {model}
  train.num_iterations: 1
  rollout: {{batch_size: 2, n_samples_per_prompt: 2}}
  eval: {{tasks: 4, tasks_between: 0, before_train: false, steps: -1}}
  report: false
algorithms:
  grpo: {{algo.advantage.estimator: grpo}}
  gigpo: {{algo.advantage.estimator: gigpo}}
seeds: [0]
submit: ray
"""


def test_a_comparison_submits_its_cells_as_ray_jobs(ray_runtime: dict[str, str], tmp_path: Path) -> None:
    matrix = tmp_path / "matrix.yaml"
    model = make_model(tmp_path / "model", tied=True)
    matrix.write_text(MATRIX.format(recipe=os.path.relpath(RECIPE, tmp_path), model=model))
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf_gagpo.cli.main", "compare", str(matrix), "--out", str(tmp_path / "out")],
        env=environment(RAY_ADDRESS=ray_runtime["address"], RAY_JOB_ADDRESS=ray_runtime["dashboard"]),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for algorithm in ("grpo", "gigpo"):
        cell = tmp_path / "out" / "cells" / "default" / algorithm / "seed0"
        assert RunFolder.open(cell).info()["state"] == "finished"
        assert read_json(cell / "cell.json")["submission"].startswith(f"gagpo-default-{algorithm}-seed0-")
    assert "| final eval/success | gigpo | 1 |" in (tmp_path / "out" / "results.md").read_text()


def test_script_through_ray_job_submit(ray_runtime: dict[str, str], tmp_path: Path) -> None:
    """The script with a plugin of each kind: an environment, an estimator that asks the model for a column, a loss."""
    model = make_model(tmp_path / "model", tied=True, words="guess higher lower between and 1 2 3 4 5 6 7 8 9")
    done = subprocess.run(
        [
            "examples/scripts/train_vault_ray.sh", str(model), str(tmp_path / "run"),
            "--env.plugin", "examples/external_env/number_hunt.py", "--env.name", "number-hunt",
            "--env.eval_split", "valid", "--eval.tasks", "16", "--eval.steps", "1",
            "--algo.plugin", "examples/plugins/surprising_tokens.py",
            "--algo.plugin", "examples/plugins/plain_gradient.py",
            "--algo.advantage.estimator", "surprising_tokens", "--algo.advantage.sharpness", "1",
            "--actor.policy_loss_type", "plain_gradient", "--actor.max_log_ratio", "5",
            "--train.num_iterations", "2", "--rollout.batch_size", "4", "--ckpt.save_steps", "1",
            "--logger.tensorboard_dir", str(tmp_path / "tensorboard"), "--algo.advantage.no_drop_reward_free_groups",
        ],
        cwd=REPOSITORY, env=environment(RAY_JOB_ADDRESS=ray_runtime["dashboard"]),
        capture_output=True, text=True, timeout=420,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = assert_complete(tmp_path / "run", 2)
    assert all(row["time/columns"] > 0 for row in run.metrics())
    assert run.config()["values"]["actor.policy_loss_type"] == "plain_gradient"
    assert [row["iteration"] for row in run.evals()] == [0, 1, 2]
    assert all(row["eval/tasks"] == 16 for row in run.evals())
    assert list((tmp_path / "tensorboard").rglob("events.*"))


def houses(folder: Path) -> None:
    pytest.importorskip("alfworld")
    from agent_envs.alfworld.generator import generate

    generate(folder, "train", 4, 0)
    generate(folder, "valid_seen", 2, 0)


def shop(folder: Path) -> None:
    pytest.importorskip("regex")
    from agent_envs.webshop.generator import generate

    generate(folder, 60, 0)


def questions(folder: Path) -> None:
    pytest.importorskip("tantivy")
    from agent_envs.search_qa.generator import generate
    from agent_envs.search_qa.levels import LEVELS

    generate(folder, replace(LEVELS["tiny"], tasks=(30, 20, 20)))


@pytest.mark.parametrize(
    ("name", "generate", "limit"), [("alfworld", houses, 6), ("webshop", shop, 5), ("search_qa", questions, 4)]
)
def test_cpu_recipe(
    name: str, generate: Callable[[Path], None], limit: int, ray_runtime: dict[str, str], tmp_path: Path
) -> None:
    """The recipe as it is, but for data made here, an untrained model and shorter episodes."""
    generate(tmp_path / "data")
    model = make_model(tmp_path / "model", tied=True)
    process = train(
        "--config", str(REPOSITORY / f"examples/recipes/{name}_cpu.yaml"), "--env.options",
        f"data_dir={tmp_path / 'data'}", "--env.max_steps", str(limit), "--actor.model_name_or_path", str(model),
        "--run_dir", str(tmp_path / "run"), "--rollout.batch_size", "2", "--rollout.n_samples_per_prompt", "4",
        "--train.num_iterations", "2", "--eval.tasks", "2", *SIGNAL,
        RAY_ADDRESS=ray_runtime["address"],
    )  # fmt: skip
    output = finish(process)
    assert process.returncode == 0, output[-3000:]
    run = assert_complete(tmp_path / "run", 2)
    assert_trained(run, model)
    episodes = read_episodes(run.rollout_path(2))
    assert len(episodes) == 8
    assert not any(episode.faulted for episode in episodes), [episode.error for episode in episodes]
    assert all(0 < len(episode.steps) <= limit for episode in episodes)
    if name == "webshop":
        assert run.info()["environment"]["nouns"] == "word list"
        assert "nouns word list" in run.report_path.read_text(encoding="utf-8")


def interrupted_by(number: signal.Signals, process: subprocess.Popen[str]) -> str:
    """Tell a run to stop; check that it said so and that all its processes had gone in time; return its output."""
    family = descendants(process)
    told = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    output = finish(process, timeout=60)
    assert_all_gone(family)
    assert time.monotonic() - told < GONE_S
    assert process.returncode == 130, output[-3000:]
    assert "interrupted after iteration" in output
    assert "Traceback" not in output
    return output


def test_kill_resume_and_interrupt_leave_nothing_behind(tmp_path: Path) -> None:
    """A run of PPO with a Ray of its own: kill -9 after a checkpoint, resume in a moved folder, Ctrl-C."""
    model = make_model(tmp_path / "model", tied=True)
    folder = tmp_path / "run"
    flags = [
        "--config", RECIPE, "--actor.model_name_or_path", str(model), "--rollout.batch_size", "2",
        "--train.num_iterations", "400", "--ckpt.save_steps", "2", "--ckpt.max_num", "1", "--ckpt.save_hf",
        "--eval.no_before_train", "--eval.steps", "-1", "--eval.no_after_train", "--ckpt.load_enable",
        "--algo.advantage.estimator", "gae", *SIGNAL, "--run_dir",
    ]  # fmt: skip
    before = shared_memory()

    first = train(*flags, str(folder))
    wait_for(lambda: (folder / "checkpoints/latest").exists(), first)
    killed = descendants(first)
    agents = [process for process in killed if process.name().endswith("Agent")]
    os.kill(first.pid, signal.SIGKILL)
    # Ray's two agents notice only after a minute that their node was killed; the second run does not wait for that.
    assert len(agents) == 2
    assert_all_gone([process for process in killed if process not in agents])
    assert shared_memory() <= before
    reached = len(RunFolder.open(folder).metrics())
    assert reached >= 2

    moved = folder.rename(tmp_path / "moved")
    second = train(*flags, str(moved))
    wait_for(lambda: len(RunFolder.open(moved).metrics()) > reached + 1, second)
    # A checkpoint in the making, so that the interrupt meets one now and then.
    wait_for(lambda: any((moved / "checkpoints").glob(".*.partial")), second, pause=0.002)
    assert "continuing after iteration" in interrupted_by(signal.SIGINT, second)
    assert_all_gone(agents)
    assert shared_memory() <= before
    run = RunFolder.open(moved)
    assert run.info()["state"] == "interrupted"
    iterations = [row["iteration"] for row in run.metrics()]
    assert iterations == list(range(1, len(iterations) + 1))
    # The engine of the second run was given the weights of the checkpoint.
    assert max(row["policy/sampling_logprob_diff_max"] for row in run.metrics()) < 1e-4
    tag = (run.checkpoints_dir / "latest").read_text()
    kept = {path.name for path in run.checkpoints_dir.iterdir() if not path.name.startswith(".")}
    whole = {"latest", tag, f"{tag}_hf"}
    # Parts of the next one that had their name already, or of the one before that were not removed yet.
    near = {f"global_step{int(tag.removeprefix('global_step')) + way}{end}" for way in (-2, 2) for end in ("", "_hf")}
    assert whole <= kept <= whole | near
    assert {path.name for path in (run.checkpoints_dir / tag).iterdir()} >= {"actor", "critic", "files.json"}
    assert (run.checkpoints_dir / f"{tag}_hf" / "tokenizer.json").is_file()


def test_sigterm_while_models_and_engine_start_leaves_nothing_behind(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", tied=True)
    before = shared_memory()
    process = train("--config", RECIPE, "--actor.model_name_or_path", str(model), "--run_dir", str(tmp_path / "run"))
    wait_for(lambda: any("ray::WorkerBase" in title for title in titles(process)), process)
    assert "interrupted after iteration 0" in interrupted_by(signal.SIGTERM, process)
    assert shared_memory() <= before
    assert RunFolder.open(tmp_path / "run").info()["state"] == "interrupted"


def test_sigterm_in_a_rollout_beside_an_update_leaves_nothing_behind(tmp_path: Path) -> None:
    """A run whose policy, reference and engine have GPUs of their own, once it overlaps."""
    model = make_model(tmp_path / "model", tied=True)
    folder = tmp_path / "run"
    before = shared_memory()
    process = train(
        "--config", RECIPE, "--actor.model_name_or_path", str(model), "--rollout.batch_size", "2", *SIGNAL,
        "--train.num_iterations", "400", "--train.no_colocate_all", "--ref.num_gpus_per_node", "1", "--train.overlap",
        "one_step", "--eval.no_before_train", "--eval.steps", "-1", "--run_dir", str(folder),
    )  # fmt: skip
    wait_for(lambda: (folder / "run.json").exists() and len(RunFolder.open(folder).metrics()) >= 3, process)
    interrupted_by(signal.SIGTERM, process)
    assert shared_memory() <= before
    run = RunFolder.open(folder)
    assert run.info()["state"] == "interrupted"
    rows = run.metrics()
    assert [row["rollout/staleness"] for row in rows] == [0, *[1] * (len(rows) - 1)]
    # The record of an iteration that was stopped may be there, as in any run; that of the one after it may not.
    assert run.rollout_iterations() in (list(range(1, len(rows) + 1)), list(range(1, len(rows) + 2)))


def titles(process: subprocess.Popen[str]) -> list[str]:
    """What the processes of a run call themselves, as Ray's workers do by the class of their actor."""
    names = []
    for child in descendants(process):
        with suppress(psutil.NoSuchProcess):
            names.append(" ".join(child.cmdline()))
    return names
