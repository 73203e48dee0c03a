"""Evaluation on the real stack: a vLLM server and a vLLM engine against the model in this process, and a Ray job."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf_gagpo.backends.local_models import write_model
from openrlhf_gagpo.evaluation.store import EvaluationFolder
from openrlhf_gagpo.rollout.types import Episode
from support.paths import REPOSITORY

TASKS = 24
CLEAR = 1e-3
"""Difference of two log-probabilities from which the better token is the same in every implementation."""
PLAYED = (
    "--env.name", "vault", "--env.options", f'{{"size": 3, "keys": 1, "valid_tasks": {TASKS}}}', "--env.split", "valid",
    "--env.max_steps", "10", "--env.workers", "1", "--rollout.history_length", "0", "--rollout.no_think",
    "--rollout.no_action_tags", "--rollout.no_list_actions", "--rollout.chat_template", "none",
    "--rollout.max_new_tokens", "6", "--data.max_len", "64", "--eval.temperature", "0",
)  # fmt: skip


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_JOB_ADDRESS")}
    return kept | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | extra


def evaluate(out: Path, *flags: str) -> list[Episode]:
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf_gagpo.cli.main", "eval", "--out", str(out), *PLAYED, *flags],
        env=environment(), capture_output=True, text=True, timeout=420,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    samples = EvaluationFolder(out).samples()
    return [samples[name].episode for name in sorted(samples)]


@pytest.fixture(scope="module")
def exported(vault_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as the local backend exports it, with tied embeddings."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("exported") / "model"
    write_model(AutoModelForCausalLM.from_pretrained(vault_model, dtype=torch.float32), folder)
    AutoTokenizer.from_pretrained(vault_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(exported: Path) -> Iterator[str]:
    """The address of vLLM's own OpenAI server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(exported), "--served-model-name",
        "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "64",
        "--enforce-eager", "--kv-cache-memory-bytes", str(2**29), "--max-num-seqs", "32",
    ]  # fmt: skip
    # Its output is kept in a file: nobody reads a pipe while the tests run.
    log = exported.parent / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 420
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def here(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    """Greedy episodes of the model in a process of its own, with token ids."""
    flags = ("--policy.model", str(exported), "--policy.threads", "1")
    return evaluate(tmp_path_factory.mktemp("here") / "out", *flags)


@pytest.fixture(scope="module")
def margins(exported: Path, here: list[Episode]) -> list[list[float]]:
    """Per step, the smallest difference of the two best tokens' log-probabilities at any position of its response."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    found = []
    for episode in here:
        found.append([])
        for step in episode.steps:
            with torch.no_grad():
                logits = model(torch.tensor([step.prompt_ids + step.response_ids])).logits[0]
            best = torch.log_softmax(logits[len(step.prompt_ids) - 1 : -1], -1).topk(2).values
            found[-1].append(float((best[:, 0] - best[:, 1]).min()))
    return found


def assert_same_actions(here: list[Episode], there: list[Episode], margins: list[list[float]]) -> None:
    """Actions are equal on every clear step, as long as both episodes are in the same state."""
    compared = 0
    assert [episode.task for episode in there] == [episode.task for episode in here]
    for mine, theirs, clear in zip(here, there, margins, strict=True):
        for one, other, margin in zip(mine.steps, theirs.steps, clear, strict=False):
            assert one.observation == other.observation
            if margin > CLEAR:
                compared += 1
                assert other.action == one.action, (mine.task, one.index, margin)
            elif other.action != one.action:
                break
        else:
            assert len(mine.steps) == len(theirs.steps)
    assert compared > 4 * TASKS


@pytest.mark.parametrize("tokens_here", [False, True], ids=["text", "token ids"])
def test_the_server_acts_like_the_model_in_this_process(
    server: str, exported: Path, here: list[Episode], margins: list[list[float]], tmp_path: Path, tokens_here: bool
) -> None:
    flags = ["--policy.base_url", server, "--policy.model", "tiny"]
    flags += ["--policy.tokenizer", str(exported)] if tokens_here else []
    there = evaluate(tmp_path / "out", *flags)
    assert_same_actions(here, there, margins)
    numbers = EvaluationFolder(tmp_path / "out").result()["numbers"]
    assert numbers["requests"] == sum(len(episode.steps) for episode in there)
    # Nothing was added to the prompts on the way, and nothing cut off.
    lengths = {episode.task: [len(step.prompt_ids) for step in episode.steps] for episode in here}
    if all(len(a.steps) == len(b.steps) for a, b in zip(here, there, strict=True)):
        assert numbers["prompt_tokens"] == sum(map(sum, lengths.values()))


def test_the_engine_acts_like_the_model_in_this_process(
    exported: Path, here: list[Episode], margins: list[list[float]], tmp_path: Path
) -> None:
    there = evaluate(tmp_path / "out", "--policy", "vllm_engine", "--policy.model", str(exported))
    assert_same_actions(here, there, margins)


def test_a_stopped_job_goes_on_without_repeating_an_episode(ray_runtime: dict[str, str], tmp_path: Path) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(ray_runtime["dashboard"])
    samples = tmp_path / "out" / "episodes.jsonl"
    words = [
        sys.executable, "-m", "openrlhf_gagpo.cli.main", "eval", "--out", str(tmp_path / "out"), "--policy", "expert",
        "--env.name", "vault", "--env.split", "valid", "--eval.n_samples_per_prompt", "8", "--rollout.concurrency", "1",
    ]  # fmt: skip

    def lines() -> list[Any]:
        whole = samples.read_bytes().splitlines(keepends=True) if samples.exists() else []
        return [json.loads(line) for line in whole if line.endswith(b"\n")]

    def submit() -> str:
        return client.submit_job(
            entrypoint=shlex.join(words), runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
        )

    def wait(job: str, done: Any) -> None:
        deadline = time.monotonic() + 240
        while not done():
            assert time.monotonic() < deadline, client.get_job_logs(job)[-3000:]
            time.sleep(0.05)

    first = submit()
    wait(first, lambda: len(lines()) >= 3)
    client.stop_job(first)
    wait(first, lambda: client.get_job_status(first).is_terminal())
    kept = lines()
    assert 3 <= len(kept) < 128 * 8

    second = submit()
    wait(second, lambda: client.get_job_status(second).is_terminal())
    assert client.get_job_status(second) is JobStatus.SUCCEEDED, client.get_job_logs(second)[-3000:]
    every = lines()
    assert every[: len(kept)] == kept
    names = [entry["trials"][0]["trajectory"] for entry in every]
    assert len(names) == len(set(names)) == 128 * 8
    assert EvaluationFolder(tmp_path / "out").result()["numbers"]["success"]["mean"] == 1.0
