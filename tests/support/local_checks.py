"""Checks of the local backend that run on any device: small in the ordinary tests, at real size in tests/gpu."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openrlhf_gagpo.training.table import LOG_PROB
from support.benchmarks import load

__all__ = ["DEEP", "LARGE", "WIDE", "estimate_and_peak", "resumed", "updated"]

# Models of which one part each takes most memory.
# Words, width, inner, layers, heads, key heads, tied, kind; then episodes, prompt, answer, rows, micro-batch.
WIDE = ((3000, 32, 64, 2, 4, 2, False, "qwen2"), (8, 40, 24, 8, 4))
DEEP = ((100, 64, 192, 6, 4, 2, True, "qwen3"), (8, 120, 8, 8, 4))
LARGE = ((500, 192, 512, 3, 4, 4, False, "llama"), (8, 40, 8, 4, 2))

# Small models gain nothing from more.
_THREADS = ("--train.threads", "1")


def updated(folder: Path, device: str, dtype: str, loss: str, *extra: str) -> dict[str, Any]:
    """Update a small model twice; return log-probabilities before and after, metrics and parameters."""
    bench = load("gpu_local")
    work = bench.Work(episodes=8, prompt=24, answer=6, rows=8, micro=3)
    model = bench.save_model(folder / f"model-{device}-{dtype}", bench.Sizes(200, 64, 96, 2, 4, 2))
    arguments = bench.flags(model, folder / "run", device, dtype, work, *_THREADS, "--actor.policy_loss_type", loss,
                            "--actor.entropy_coef", "0.01", "--algo.kl.init_coef", "0.05", *extra)  # fmt: skip
    with bench.started(arguments) as backend:
        rows = bench.make_rows(work.rows, work.prompt, work.answer, 200)
        before = backend.compute(rows, {LOG_PROB})[LOG_PROB]
        metrics = [backend.update(rows, seed=seed) for seed in (0, 1)]
        after = backend.compute(rows, {LOG_PROB})[LOG_PROB]
        assert all(np.isfinite(value) for row in metrics for value in row.values())
        return {"before": before, "after": after, "metrics": metrics, "parameters": backend.parameters()}


def resumed(folder: Path, device: str, dtype: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters after three iterations, and after one, a checkpoint, a new backend and two more."""
    bench = load("gpu_local")
    work = bench.Work(episodes=8, prompt=24, answer=6, rows=8, micro=3)
    model = bench.save_model(folder / "model", bench.Sizes(200, 64, 96, 2, 4, 2))
    rows = bench.make_rows(work.rows, work.prompt, work.answer, 200)
    arguments = bench.flags(model, folder / "run", device, dtype, work, *_THREADS)
    with bench.started(arguments) as backend:
        backend.update(rows, seed=1)
        backend.save_checkpoint("global_step1", {"iteration": 1})
        for seed in (2, 3):
            backend.update(rows, seed=seed)
        straight = backend.parameters()
    with bench.started(arguments) as backend:
        restored = backend.load_checkpoint()
        assert restored is not None
        assert restored.state == {"iteration": 1}
        for seed in (2, 3):
            backend.update(rows, seed=seed)
        return straight, backend.parameters()


def estimate_and_peak(
    folder: Path, device: str, dtype: str, sizes: Any, work: Any, peak: Callable[[Callable[[], object]], int],
    *extra: str,
) -> dict[str, tuple[float, int]]:  # fmt: skip
    """For the phases of training the bytes that a dry run gives, and those that live at most.

    Args:
        peak: runs its argument and returns by how many bytes the tensors on the device grew at most.
    """
    bench = load("gpu_local")
    model = bench.save_model(folder / "model", sizes)
    arguments = bench.flags(model, folder / "run", device, dtype, work, *_THREADS, *extra)
    rows: Sequence[Any] = bench.make_rows(work.rows, work.prompt, work.answer, sizes.words)
    micro = int(arguments[arguments.index("--train.micro_batch_size") + 1])

    def forward() -> None:
        with bench.started(arguments) as backend:
            backend.compute(rows, {LOG_PROB})

    def update() -> None:
        with bench.started(arguments) as backend:
            # The optimizer has its states after the first step.
            backend.update(rows[:micro], seed=0)
            backend.update(rows, seed=1)

    parts = bench.estimated(arguments, "forward")
    return {
        # Before the first step there are no states.
        "forward": (sum(parts.values()) - parts["optimizer"], peak(forward)),
        "update": (sum(bench.estimated(arguments, "update").values()), peak(update)),
    }
