"""Run the demo over several seeds and both backends, and measure by how much success on held-out tasks rises.

Each seed has a warm start, then the vault recipe. Keeps the data that a reader needs to check the numbers (metrics,
evaluations, configuration, machine) and draws the curves.

    python benchmarks/vault_seeds.py --out results/vault_demo
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from recording import REPOSITORY, gagpo, keep, machine

from openrlhf_gagpo.report import plot_curve
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import mean_interval

RECIPE = REPOSITORY / "examples/recipes/vault_demo.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backends", nargs="+", default=["distributed", "local"])
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of gagpo train")
    options = parser.parse_args()

    summary: dict[str, Any] = {
        "machine": machine(),
        "flags": options.flags,
        "runs": [],
        "rise": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            start = Path(scratch) / f"start-{seed}"
            warm = gagpo("warmstart", "--env.name", "vault", "--out", str(start), "--seed", str(seed))
            for backend in options.backends:
                folder = Path(scratch) / f"{backend}-seed{seed}"
                seconds = gagpo(
                    "train", "--config", str(RECIPE), "--backend", backend, "--train.seed", str(seed),
                    "--actor.model_name_or_path", str(start), "--run_dir", str(folder), *options.flags,
                )  # fmt: skip
                run = RunFolder.open(folder)
                first, last = run.evals()[0], run.evals()[-1]
                summary["runs"].append(
                    {
                        "backend": backend,
                        "seed": seed,
                        "before": first["eval/success"],
                        "after": last["eval/success"],
                        "tasks": last["eval/tasks"],
                        "train_s": seconds,
                        "warmstart_s": warm,
                    }
                )
        kept = {
            backend: keep([Path(scratch) / f"{backend}-seed{seed}" for seed in options.seeds], options.out, scratch)
            for backend in options.backends
        }
    for backend in options.backends:
        rises = [run["after"] - run["before"] for run in summary["runs"] if run["backend"] == backend]
        rise = mean_interval(rises)
        summary["rise"][backend] = {"mean": rise.mean, "low": rise.low, "high": rise.high, "seeds": rise.count}
        plot_curve(
            kept[backend],
            options.out / f"{backend}.png",
            metrics={"success": "eval/success"},
            title="vault: sampled success on 256 held-out tasks",
        )
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(summary["rise"], indent=2) + "\n")


if __name__ == "__main__":
    main()
