"""Run GAGPO on generated ALFWorld houses, from making the houses to the curve of training and held-out success.

A tiny model is cloned from noisy demonstrations and trained for 20 iterations on houses of all six task types; held-out
houses share the rooms but no goal with training houses. Keeps metrics, evaluations and configuration of every seed.

    python benchmarks/alfworld_run.py --out results/alfworld_small
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from recording import REPOSITORY, gagpo, keep, machine

from agent_envs.alfworld.rooms import TASKS
from openrlhf_gagpo.report import plot_curve
from openrlhf_gagpo.runfolder import RunFolder

RECIPE = REPOSITORY / "examples/recipes/alfworld_cpu.yaml"
# The recipe's settings were chosen on houses of seed 0.
HOUSE_SEED = 1
# The same settings as in the comments of the recipe, whose commands a reader may run.
WARM_START = (
    "--rollout.history_length", "2", "--rollout.list_actions", "--episodes", "4800", "--layers", "3",
    "--batch_size", "16", "--steps", "4500",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--backend", default="distributed", choices=("distributed", "local"))
    parser.add_argument("--train_houses", type=int, default=3600)
    parser.add_argument("--held_out_houses", type=int, default=360)
    parser.add_argument("--task_types", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="TYPE")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of gagpo train")
    options = parser.parse_args()

    summary: dict[str, Any] = {
        "machine": machine(),
        "houses": {"train": options.train_houses, "valid_seen": options.held_out_houses},
        "task_types": options.task_types,
        "backend": options.backend,
        "warm_start": WARM_START,
        "flags": options.flags,
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "houses"
        for split, count in summary["houses"].items():
            gagpo(
                "env", "generate", "alfworld", "--out", str(data), "--split", split, "--count", str(count),
                "--seed", str(HOUSE_SEED), "--task_types", *options.task_types,
            )  # fmt: skip
        env = ("--env.options", f"data_dir={data}")
        for seed in options.seeds:
            start, folder = Path(scratch) / f"start-{seed}", Path(scratch) / f"seed{seed}"
            warm = gagpo(
                "warmstart", "--env.name", "alfworld", *env, "--env.options", "max_steps=20", *WARM_START,
                "--seed", str(seed), "--out", str(start),
            )  # fmt: skip
            seconds = gagpo(
                "train", "--config", str(RECIPE), *env, "--backend", options.backend, "--train.seed", str(seed),
                "--actor.model_name_or_path", str(start), "--run_dir", str(folder), *options.flags,
            )  # fmt: skip
            summary["runs"].append({"seed": seed, "warmstart_s": warm, "train_s": seconds, **outcome(folder)})
        kept = keep([Path(scratch) / f"seed{seed}" for seed in options.seeds], options.out, scratch)
    plot_curve(
        kept,
        options.out / "curve.png",
        metrics={"training houses": "rollout/success", "held-out houses": "eval/success"},
        title="ALFWorld, generated small houses: sampled success",
    )
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(summary["runs"], indent=2) + "\n")


def outcome(folder: Path) -> dict[str, Any]:
    """Return held-out success before and after, overall and per category, with 95 % intervals, and training success."""
    run = RunFolder.open(folder)
    evals, rows = run.evals(), run.metrics()

    def held_out(row: dict[str, Any]) -> dict[str, float]:
        names = [name for name in row if name.startswith(("eval/success", "eval/tasks"))]
        return {name.removeprefix("eval/"): row[name] for name in names}

    return {
        "held_out_before": held_out(evals[0]),
        "held_out_after": held_out(evals[-1]),
        # Averaged, because every iteration plays different houses and a single one is noisy.
        "train_first_five": sum(row["rollout/success"] for row in rows[:5]) / 5,
        "train_last_five": sum(row["rollout/success"] for row in rows[-5:]) / 5,
    }


if __name__ == "__main__":
    main()
