"""This checkout against another one: the same starts and seeds, held-out success and CPU seconds of both, in one run.

CPU seconds are those of the whole command, and those of its iterations alone (see ``iteration_cpu.py``).

Per seed one warm start is made with the baseline; both checkouts then train from it on the local backend with the
baseline's vault recipe, whose flags both know; the order alternates from seed to seed. Success is sampled on 256
held-out tasks after the last iteration. With ``--setting recipe`` start and recipe are the baseline's own; ``slack``
has a limit of 30 steps and a weaker start, where runs with other random numbers end far apart; ``settled`` has that
limit, a somewhat better start and a learning rate that falls, so that runs end close together.

    git worktree add ../before v0.1.0
    python benchmarks/versions.py --baseline ../before --out benchmarks/results/versions.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recording import REPOSITORY, machine

from openrlhf_gagpo.stats import mean_interval

RECIPE = "examples/recipes/vault_demo.yaml"
STARTS = {
    "slack": ("--env.options", "max_steps=30", "--episodes", "500", "--noise", "0.55", "--steps", "130"),
    "settled": ("--env.options", "max_steps=30", "--episodes", "500", "--noise", "0.55", "--steps", "260"),
    "recipe": (),
}
SETTINGS = {
    "slack": (
        "--env.max_steps", "30", "--train.num_iterations", "24", "--actor.adam.lr", "2.5e-4", "--actor.lr_scheduler",
        "constant",
    ),
    "settled": (
        "--env.max_steps", "30", "--train.num_iterations", "24", "--actor.adam.lr", "4e-4", "--actor.lr_scheduler",
        "cosine_with_min_lr",
    ),
    "recipe": (),
}  # fmt: skip
MEASURED = (
    "--eval.steps", "12", "--eval.tasks", "256", "--eval.temperature", "1.0", "--rollout.record", "none", "--no_report"
)  # fmt: skip
PROGRAM = Path(__file__).with_name("iteration_cpu.py")


def gagpo(checkout: Path, iterations: Path, *arguments: str) -> float:
    """Run a command with the code of ``checkout``; return its CPU seconds, child processes included.

    Args:
        iterations: file that gets the CPU seconds of each iteration.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM), str(iterations), *arguments],
        check=True, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commit(checkout: Path) -> str:
    """Commit of ``checkout``, with "+changes" where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")


def train(checkout: Path, recipe: Path, start: Path, folder: Path, seed: int, flags: list[str]) -> dict[str, float]:
    """Train from ``start``; return success before and after, and CPU seconds."""
    iterations = folder.with_suffix(".json")
    seconds = gagpo(
        checkout, iterations, "train", "--config", str(recipe), "--backend", "local", "--train.seed", str(seed),
        "--actor.model_name_or_path", str(start), "--run_dir", str(folder), *flags,
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    return {
        "before": rows[0]["eval/success"],
        "after": rows[-1]["eval/success"],
        "cpu_s": seconds,
        "iterations_cpu_s": sum(json.loads(iterations.read_text())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--baseline", type=Path, required=True, help="another checkout of this repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--setting", choices=list(SETTINGS), default="slack")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of gagpo train")
    options = parser.parse_args()
    checkouts = {"baseline": options.baseline.resolve(), "present": REPOSITORY}

    flags = [*SETTINGS[options.setting], *MEASURED, *options.flags]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            start = Path(scratch) / f"start-{seed}"
            gagpo(
                checkouts["baseline"], Path(scratch) / "none.json", "warmstart", "--env.name", "vault",
                *STARTS[options.setting], "--threads", "1", "--out", str(start), "--seed", str(seed),
            )  # fmt: skip
            order = sorted(checkouts, reverse=bool(seed % 2))
            entry: dict[str, Any] = {"seed": seed}
            for name in order:
                folder = Path(scratch) / f"{name}-{seed}"
                entry[name] = train(checkouts[name], checkouts["baseline"] / RECIPE, start, folder, seed, flags)
            runs.append(entry)
            sys.stdout.write(json.dumps(entry) + "\n")
            sys.stdout.flush()
    difference = mean_interval([run["present"]["after"] - run["baseline"]["after"] for run in runs])
    ratio, iterations = (
        mean_interval([run["present"][name] / run["baseline"][name] for run in runs])
        for name in ("cpu_s", "iterations_cpu_s")
    )
    report = {
        "machine": machine(),
        "commits": {name: commit(path) for name, path in checkouts.items()},
        "setting": options.setting,
        "flags": flags,
        "runs": runs,
        "success_present_less_baseline": vars(difference),
        "cpu_seconds_present_over_baseline": vars(ratio),
        "cpu_seconds_of_iterations_present_over_baseline": vars(iterations),
    }
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({name: report[name] for name in list(report)[-3:]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
