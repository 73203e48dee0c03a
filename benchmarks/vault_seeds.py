"""Run the demo over several seeds and both backends, and measure by how much success on held-out tasks rises.

Each seed has a warm start, which the backends share, then the vault recipe; success is that of sampled and of greedy
play. Keeps the data that a reader needs to check the numbers (metrics, evaluations, configuration, machine) and draws
the curves.

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
START = ("--env.options", "max_steps=30", "--episodes", "500", "--noise", "0.55", "--steps", "130", "--threads", "1")
PLAY = {"sampled": "eval/success", "greedy": "eval/greedy_success"}


def train(folder: Path, backend: str, start: Path, seed: int, flags: list[str]) -> dict[str, Any]:
    """Train one run and return its evaluations in short."""
    seconds = gagpo(
        "train", "--config", str(RECIPE), "--backend", backend, "--train.seed", str(seed),
        "--actor.model_name_or_path", str(start), "--run_dir", str(folder), *flags,
    )  # fmt: skip
    rows = RunFolder.open(folder).evals()
    ends = {name: {"before": rows[0][metric], "after": rows[-1][metric]} for name, metric in PLAY.items()}
    curve = {str(row["iteration"]): row["eval/success"] for row in rows}
    return {
        "backend": backend,
        "seed": seed,
        **ends,
        "curve": curve,
        "tasks": rows[-1]["eval/tasks"],
        "train_s": seconds,
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds with t intervals: both ends, their difference, and what the last evaluation lost."""
    found: dict[str, Any] = {"seeds": len(runs)}
    for name in PLAY:
        before, after = ([run[name][end] for run in runs] for end in ("before", "after"))
        rise = [late - early for early, late in zip(before, after, strict=True)]
        values = {"before": before, "after": after, "rise": rise}
        found[name] = {word: _interval(numbers) for word, numbers in values.items()}
    means = {at: mean_interval([run["curve"][at] for run in runs]).mean for at in runs[0]["curve"]}
    best, *_, last = max(means, key=lambda at: means[at]), *means
    lost = [run["curve"][best] - run["curve"][last] for run in runs]
    found["best_less_last"] = {"best": int(best), "last": int(last), **_interval(lost)}
    return found


def _interval(values: list[float]) -> dict[str, float]:
    interval = mean_interval(values)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--local", type=int, default=8, help="seeds of the local backend")
    parser.add_argument("--distributed", type=int, default=3, help="seeds of the distributed backend")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of gagpo train")
    options = parser.parse_args()

    seeds = {"local": range(options.local), "distributed": range(options.distributed)}
    summary: dict[str, Any] = {"machine": machine(), "start": START, "flags": options.flags, "runs": [], "summary": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(max(options.local, options.distributed)):
            start = Path(scratch) / f"start-{seed}"
            warm = gagpo("warmstart", "--env.name", "vault", *START, "--out", str(start), "--seed", str(seed))
            for backend in (backend for backend, chosen in seeds.items() if seed in chosen):
                run = train(Path(scratch) / f"{backend}-seed{seed}", backend, start, seed, options.flags)
                summary["runs"].append(run | {"warmstart_s": warm})
        kept = {
            backend: keep([Path(scratch) / f"{backend}-seed{seed}" for seed in chosen], options.out, scratch)
            for backend, chosen in seeds.items()
            if chosen
        }
    for backend, folders in kept.items():
        summary["summary"][backend] = summarise([run for run in summary["runs"] if run["backend"] == backend])
        plot_curve(
            folders,
            options.out / f"{backend}.png",
            metrics={"sampled": "eval/success", "greedy": "eval/greedy_success"},
            title="vault: success on held-out tasks",
        )
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(summary["summary"], indent=2) + "\n")


if __name__ == "__main__":
    main()
