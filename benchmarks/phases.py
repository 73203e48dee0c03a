"""Measure the time of a run: start-up and every phase of an iteration, for both backends, one after the other.

Each backend runs the vault for 24 iterations without evaluations (they are timed separately), from start to exit.

    python benchmarks/phases.py --model runs/.../start --out benchmarks/results/phases.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from openrlhf_gagpo.runfolder import RunFolder

RECIPE = Path(__file__).resolve().parents[1] / "examples/recipes/vault_demo.yaml"
PHASES = ("rollout", "credit", "forward", "update", "sync", "iteration")


def measure(backend: str, model: str, iterations: int, folder: Path) -> dict[str, Any]:
    """Return the wall seconds of one run and the median of every phase over its iterations, without the first one."""
    started, called = time.perf_counter(), time.time()
    subprocess.run(
        [
            sys.executable, "-W", "ignore", "-m", "openrlhf_gagpo.cli.train", "--config", str(RECIPE),
            "--backend", backend, "--actor.model_name_or_path", model, "--run_dir", str(folder),
            "--train.num_iterations", str(iterations), "--eval.no_before_train", "--eval.no_after_train",
            "--eval.steps", "-1",
        ],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    total = time.perf_counter() - started
    run = RunFolder.open(folder)
    rows = run.metrics()
    facts = run.info()["backend"]
    spent = sum(row["time/iteration"] for row in rows)
    start = datetime.fromisoformat(facts["ready_at"]).timestamp() - called
    return {
        "total_s": total,
        "iterations_s": spent,
        "start_s": start,
        # Models and engines of the distributed backend load concurrently, so these parts overlap.
        "start_parts_s": {
            name.removeprefix("start_").removesuffix("_s"): float(seconds)
            for name, seconds in facts.items()
            if name.startswith("start_")
        },
        # The export of the model, the report, and the end of the processes.
        "end_s": total - spent - start,
        "median_s": {phase: statistics.median(row[f"time/{phase}"] for row in rows[1:]) for phase in PHASES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder made by gagpo warmstart for the vault")
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    runs: dict[str, list[dict[str, Any]]] = {"local": [], "distributed": []}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(options.repeats):
            for backend, results in runs.items():
                results.append(
                    measure(backend, options.model, options.iterations, Path(scratch) / f"{backend}{repeat}")
                )
    ratios = [b["total_s"] / a["total_s"] for a, b in zip(runs["local"], runs["distributed"], strict=True)]
    report = {
        "cores": os.cpu_count(),
        "date": datetime.now().date().isoformat(),
        "iterations": options.iterations,
        "runs": runs,
        "distributed_over_local": ratios,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for backend, results in runs.items():
        best = min(results, key=lambda item: item["total_s"])
        phases = ", ".join(f"{name} {seconds:.3f}" for name, seconds in best["median_s"].items())
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in best["start_parts_s"].items())
        sys.stdout.write(f"{backend}: {best['total_s']:.1f} s in all\n")
        sys.stdout.write(f"  start {best['start_s']:.1f} s (of it {parts}), end {best['end_s']:.1f} s\n")
        sys.stdout.write(f"  an iteration, median: {phases}\n")
    sys.stdout.write(f"distributed / local, per repeat: {', '.join(f'{ratio:.1f}' for ratio in ratios)}\n")


if __name__ == "__main__":
    main()
