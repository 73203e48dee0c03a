"""Measure the local backend with a random model on one device: tokens per second, share of the device's speed, memory.

Nothing is downloaded: the model is made from sizes (by default 0.5 billion parameters, about the shape of Qwen2.5-0.5B)
and plays the vault badly, with answers of full length. Rollout: seconds from the first prompt to the last answer.
Update: optimizer steps over made-up rows of full length, the second of two iterations. The share is of what a product
of large matrices reaches in the same number format on the same device (``of_matrix_product``), and of the maker's
figure where it is known (``of_maker``). Operations are counted as 2 per parameter and token read, and 6 per parameter
and token trained, without attention and recomputation. Needs torch and transformers, neither Ray nor vLLM.

Run: ``python benchmarks/gpu_local.py --out benchmarks/results`` (writes ``gpu_<device>.json``).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agent_envs import make
from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.backends.local_models import write_model
from openrlhf_gagpo.config.foresight import foresee
from openrlhf_gagpo.config.memory import Estimate
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings, sampling
from openrlhf_gagpo.training.rows import TrainingRow
from openrlhf_gagpo.training.schedule import training_requests
from openrlhf_gagpo.warmstart.tokenizer import build_tokenizer

MAKERS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bfloat16 operations per second by a part of the device's name."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a random model."""

    words: int = 151_936
    width: int = 896
    inner: int = 4864
    layers: int = 24
    heads: int = 14
    key_heads: int = 2
    tied: bool = True
    kind: str = "qwen3"


@dataclass(frozen=True)
class Work:
    """What one measurement plays and trains."""

    episodes: int = 64
    prompt: int = 512
    answer: int = 64
    rows: int = 64
    micro: int = 8


def save_model(folder: Path, sizes: Sizes) -> Path:
    """Write a random model and a word-level tokenizer over the vault's words."""
    torch.manual_seed(0)
    env = make("vault")
    start = env.reset(env.tasks("train")[0], 0)
    tokenizer = build_tokenizer([start.observation, *start.admissible_actions])
    config = AutoConfig.for_model(
        sizes.kind, vocab_size=max(sizes.words, len(tokenizer)), hidden_size=sizes.width, intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.key_heads,
        head_dim=sizes.width // sizes.heads, max_position_embeddings=8192, tie_word_embeddings=sizes.tied,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    write_model(AutoModelForCausalLM.from_config(config), folder)
    tokenizer.save_pretrained(folder)
    return folder


def flags(model: Path, run_dir: Path, device: str, dtype: str, work: Work, *extra: str) -> list[str]:
    """Return the flags of a run of the local backend."""
    return [
        "--backend", "local", "--train.device", device, "--ds.param_dtype", dtype, "--env.name", "vault",
        "--env.options", "keys=1", "--env.options", "train_tasks=16", "--env.max_steps", "10",
        "--actor.model_name_or_path", str(model), "--run_dir", str(run_dir),
        "--rollout.batch_size", str(max(1, work.episodes // 8)), "--rollout.n_samples_per_prompt", "8",
        "--rollout.max_new_tokens", str(work.answer), "--rollout.micro_batch_size", str(work.micro),
        "--data.max_len", str(work.prompt + work.answer), "--rollout.chat_template", "none",
        "--rollout.no_think", "--rollout.no_action_tags", "--rollout.no_list_actions",
        "--train.batch_size", str(work.rows), "--train.micro_batch_size", str(work.micro),
        "--algo.kl.init_coef", "0", "--actor.adam.lr", "1e-4", "--eval.steps", "-1", *extra,
    ]  # fmt: skip


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[LocalBackend]:
    """Start a local backend, and close it at the end."""
    config = resolve(list(arguments))
    backend = LocalBackend(backend_settings(config), config.namespace())
    backend.start()
    try:
        yield backend
    finally:
        backend.close()


def make_rows(count: int, prompt: int, answer: int, words: int) -> list[TrainingRow]:
    """Return rows with made-up advantages; the prompt of every second one is a token shorter, so that there is padding.

    Prompts differ in their first token, so that none is shared.
    """
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        ids = rng.integers(3, words, prompt - index % 2 + answer).tolist()
        ids[0] = 3 + index % (words - 3)
        cut = len(ids) - answer
        rows.append(
            TrainingRow(ids[:cut], ids[cut:], [-1.0] * answer, float(rng.normal()), trajectory=f"t{index}", step=0)
        )
    return rows


def matrix_product_speed(device: str, dtype: torch.dtype, size: int) -> float:
    """Return the operations per second of a product of two large matrices."""
    left = torch.randn(size, size, device=device, dtype=dtype)
    left @ left
    repeats = 10
    _wait(device)
    before = time.perf_counter()
    for _ in range(repeats):
        left @ left
    _wait(device)
    return repeats * 2 * size**3 / (time.perf_counter() - before)


def estimated(arguments: Sequence[str], phase: str) -> Mapping[str, float]:
    """Return the bytes by part that a dry run gives for a phase."""
    memory = foresee(resolve(list(arguments))).memory
    assert isinstance(memory, Estimate)
    return next(part.parts for part in memory.phases if part.name == phase)


def measure(device: str, dtype: str, sizes: Sizes, work: Work, scratch: Path, *extra: str) -> dict[str, Any]:
    """Return what a rollout and an update take."""
    model = save_model(scratch / f"model-{dtype}", sizes)
    arguments = flags(model, scratch / f"run-{dtype}", device, dtype, work, *extra)
    config = resolve(arguments)
    with started(arguments) as backend:
        parameters = sum(p.numel() for p in backend.model.parameters())
        tasks = [f"vault-train-{index}" for index in range(config.rollout.batch_size)]
        requests = training_requests(tasks, config.rollout.n_samples_per_prompt, 1, seed=0)
        seconds, episodes = _timed(device, lambda: backend.rollout(requests, sampling(config), lambda _: None))
        steps = [step for episode in episodes for step in episode.steps]
        answered = sum(len(step.response_ids) for step in steps)
        read = answered + sum(len(step.prompt_ids) for step in steps)
        rows = make_rows(work.rows, work.prompt, work.answer, sizes.words)
        backend.update(rows, seed=0)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _, metrics = _timed(device, lambda: backend.update(rows, seed=1))
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    trained = sum(row.length for row in rows)
    number = torch.float32 if dtype == "fp32" else torch.bfloat16
    best = matrix_product_speed(device, number, 8192 if device == "cuda" else 64)
    maker = next((speed for name, speed in MAKERS.items() if device == "cuda" and name in _name(device)), None)

    def speed(tokens: int, per_token: int, spent: float) -> dict[str, float | None]:
        done = per_token * parameters * tokens / spent
        known = maker is not None and dtype == "bf16"
        return {
            "seconds": round(spent, 3),
            "tokens_per_second": round(tokens / spent, 1),
            "of_matrix_product": round(done / best, 4),
            "of_maker": round(done / maker, 4) if known and maker else None,
        }

    return {
        "dtype": dtype,
        "parameters": parameters,
        "sizes": asdict(sizes),
        "work": asdict(work),
        "matrix_product_operations_per_second": best,
        "rollout": {**speed(read, 2, seconds), "answer_tokens_per_second": round(answered / seconds, 1)},
        "update": speed(trained, 6, metrics["time/update"]),
        "forward_seconds": round(metrics["time/forward"], 3),
        "update_peak_bytes": peak,
        "update_estimated_bytes": round(sum(estimated(arguments, "update").values())),
        "loss_is_finite": bool(np.isfinite(metrics["policy/loss"])),
    }


def _timed(device: str, work: Any) -> tuple[float, Any]:
    _wait(device)
    before = time.perf_counter()
    result = work()
    _wait(device)
    return time.perf_counter() - before, result


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def write_report(device: str, results: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Write ``gpu_<device>.json`` and return its path."""
    name = _name(device)
    file = folder / f"gpu_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
    report = {"device": name, "torch": torch.__version__, "results": list(results)}
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return file


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both number formats, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="a tiny model and little work, to try the script")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("this needs a CUDA device; use --device cpu --small to try the script without one\n")
        return 2
    sizes, work = Sizes(), Work()
    if given.small:
        sizes, work = Sizes(200, 32, 64, 2, 4, 2), Work(8, 64, 4, 8, 4)
    with tempfile.TemporaryDirectory() as scratch:
        extra = ("--train.threads", "1") if given.small else ()
        results = [measure(given.device, dtype, sizes, work, Path(scratch), *extra) for dtype in ("bf16", "fp32")]
    file = write_report(given.device, results, given.out)
    for result in results:
        for phase in ("rollout", "update"):
            sys.stdout.write(f"{result['dtype']} {phase}: {json.dumps(result[phase])}\n")
    sys.stdout.write(f"{file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
