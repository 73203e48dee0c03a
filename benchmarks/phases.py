"""Measure the time of a run: start-up and every phase of an iteration, for both backends, one after the other.

Each backend runs the vault for 24 iterations without evaluations (they are timed separately), from start to exit. With
``--baseline``, another checkout of this repository runs the distributed backend too, in turn with this one: the report
then compares the two, in wall time and in CPU seconds of all processes, which other work on the machine disturbs less.

    python benchmarks/phases.py --model runs/.../start --out benchmarks/results/phases.json
    git worktree add ../before v0.1.0
    python benchmarks/phases.py --model runs/.../start --baseline ../before --out benchmarks/results/lean.json
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

from recording import REPOSITORY
from versions import commit

from openrlhf_gagpo.runfolder import RunFolder

HERE = Path(__file__).resolve().parent
RECIPE = REPOSITORY / "examples/recipes/vault_demo.yaml"
PHASES = ("rollout", "credit", "forward", "update", "sync", "iteration")


def measure(backend: str, model: str, iterations: int, folder: Path, checkout: Path = REPOSITORY) -> dict[str, Any]:
    """Run the code of ``checkout`` once and return its wall seconds, and of each phase the median over iterations.

    The first iteration is left out. Of the distributed backend, CPU seconds are returned too (see ``stack_cpu.py``).
    """
    seconds = folder.with_suffix(".json")
    program = ["-m", "openrlhf_gagpo.cli.train"]
    if backend == "distributed":
        program = [str(HERE / "stack_cpu.py"), str(seconds), "train"]
    started, called = time.perf_counter(), time.time()
    subprocess.run(
        [
            sys.executable, "-W", "ignore", *program, "--config", str(RECIPE),
            "--backend", backend, "--actor.model_name_or_path", model, "--run_dir", str(folder),
            "--train.num_iterations", str(iterations), "--eval.no_before_train", "--eval.no_after_train",
            "--eval.steps", "-1",
        ],
        check=True, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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
        "rows": statistics.mean(row["policy/rows_trained"] for row in rows[1:]),
        "cpu": _cpu(json.loads(seconds.read_text())) if seconds.exists() else None,
    }


def _cpu(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return CPU seconds until the second iteration, by process, and the mean of the iterations after the first."""
    start: dict[str, float] = recorded["start"]
    return {
        "start_s": sum(start.values()),
        "start_by_process_s": start,
        "forward_and_update_s": statistics.mean(recorded["updates"][1:]),
        "iteration_s": statistics.mean(recorded["iterations"][1:]),
    }


def compared(before: dict[str, Any], present: dict[str, Any]) -> dict[str, float]:
    """Return present over before: wall and CPU seconds of the phases, per trained row, and CPU seconds of the start.

    Runs differ in the rows that they train on, since they sample.
    """

    def per_row(run: dict[str, Any], seconds: float) -> float:
        return seconds / run["rows"]

    def wall(run: dict[str, Any], *phases: str) -> float:
        return per_row(run, sum(run["median_s"][phase] for phase in phases))

    return {
        "start_cpu": present["cpu"]["start_s"] / before["cpu"]["start_s"],
        **{
            f"{name}_cpu": per_row(present, present["cpu"][f"{name}_s"]) / per_row(before, before["cpu"][f"{name}_s"])
            for name in ("forward_and_update", "iteration")
        },
        "forward_and_update_wall": wall(present, "forward", "update") / wall(before, "forward", "update"),
        "iteration_wall": wall(present, "iteration") / wall(before, "iteration"),
    }


def against(baseline: Path, model: str, iterations: int, repeats: int, scratch: Path) -> dict[str, Any]:
    """Run both checkouts in turn and compare each pair."""
    checkouts = {"baseline": baseline.resolve(), "present": REPOSITORY}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for repeat in range(repeats):
        for name in sorted(checkouts, reverse=bool(repeat % 2)):
            runs[name].append(measure("distributed", model, iterations, scratch / f"{name}{repeat}", checkouts[name]))
    pairs = [compared(*pair) for pair in zip(runs["baseline"], runs["present"], strict=True)]
    return {
        "commits": {name: commit(path) for name, path in checkouts.items()},
        "runs": runs,
        "present_over_baseline": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder made by gagpo warmstart for the vault")
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--baseline", type=Path, help="another checkout of this repository to compare with")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.model = str(Path(options.model).resolve())

    report: dict[str, Any] = {
        "cores": os.cpu_count(),
        "date": datetime.now().date().isoformat(),
        "iterations": options.iterations,
    }
    with tempfile.TemporaryDirectory() as scratch:
        if options.baseline:
            report |= against(options.baseline, options.model, options.iterations, options.repeats, Path(scratch))
        else:
            report |= both(options.model, options.iterations, options.repeats, Path(scratch))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, results in report["runs"].items():
        _show(name, min(results, key=lambda item: item["total_s"]))
    for name in ("distributed_over_local", "present_over_baseline"):
        if name in report:
            sys.stdout.write(f"{name.replace('_', ' ')}, per repeat: {json.dumps(report[name])}\n")


def both(model: str, iterations: int, repeats: int, scratch: Path) -> dict[str, Any]:
    """Run both backends in turn and compare each pair."""
    runs: dict[str, list[dict[str, Any]]] = {"local": [], "distributed": []}
    for repeat in range(repeats):
        for backend, results in runs.items():
            results.append(measure(backend, model, iterations, scratch / f"{backend}{repeat}"))
    ratios = [b["total_s"] / a["total_s"] for a, b in zip(runs["local"], runs["distributed"], strict=True)]
    return {"runs": runs, "distributed_over_local": ratios}


def _show(name: str, run: dict[str, Any]) -> None:
    phases = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in run["median_s"].items())
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in run["start_parts_s"].items())
    sys.stdout.write(f"{name}: {run['total_s']:.1f} s in all\n")
    sys.stdout.write(f"  start {run['start_s']:.1f} s (of it {parts}), end {run['end_s']:.1f} s\n")
    sys.stdout.write(f"  an iteration, median: {phases}\n")
    if run["cpu"]:
        cpu = run["cpu"]
        by_process = ", ".join(f"{process} {seconds:.1f}" for process, seconds in cpu["start_by_process_s"].items())
        sys.stdout.write(f"  CPU seconds until the second iteration: {cpu['start_s']:.1f} ({by_process})\n")
        sys.stdout.write(
            f"  CPU seconds of an iteration: {cpu['iteration_s']:.2f}, of forward passes and update in it "
            f"{cpu['forward_and_update_s']:.2f}, over {run['rows']:.0f} rows\n"
        )


if __name__ == "__main__":
    main()
