"""This checkout against another one: the same starts and seeds, held-out success and CPU seconds of both, in one run.

Per seed one warm start is made with the baseline; both checkouts then train from it with the vault recipe on the local
backend, the order alternating from seed to seed. Success is sampled on held-out tasks after the last iteration.

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
PROGRAM = "from openrlhf_gagpo.cli.main import main; raise SystemExit(main())"


def gagpo(checkout: Path, *arguments: str) -> float:
    """Run a command with the code of ``checkout``; return its CPU seconds, child processes included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments],
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


def train(checkout: Path, start: Path, folder: Path, seed: int, flags: list[str]) -> dict[str, float]:
    """Train from ``start``; return success before and after, and CPU seconds."""
    seconds = gagpo(
        checkout, "train", "--config", RECIPE, "--backend", "local", "--train.seed", str(seed),
        "--actor.model_name_or_path", str(start), "--run_dir", str(folder), "--no_report",
        "--rollout.record", "none", *flags,
    )  # fmt: skip
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    return {"before": rows[0]["eval/success"], "after": rows[-1]["eval/success"], "cpu_s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--baseline", type=Path, required=True, help="another checkout of this repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of gagpo train")
    options = parser.parse_args()
    checkouts = {"baseline": options.baseline.resolve(), "present": REPOSITORY}

    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            start = Path(scratch) / f"start-{seed}"
            gagpo(checkouts["baseline"], "warmstart", "--env.name", "vault", "--out", str(start), "--seed", str(seed))
            order = sorted(checkouts, reverse=bool(seed % 2))
            entry: dict[str, Any] = {"seed": seed}
            for name in order:
                folder = Path(scratch) / f"{name}-{seed}"
                entry[name] = train(checkouts[name], start, folder, seed, options.flags)
            runs.append(entry)
            sys.stdout.write(json.dumps(entry) + "\n")
            sys.stdout.flush()
    difference = mean_interval([run["present"]["after"] - run["baseline"]["after"] for run in runs])
    ratio = mean_interval([run["present"]["cpu_s"] / run["baseline"]["cpu_s"] for run in runs])
    report = {
        "machine": machine(),
        "commits": {name: commit(path) for name, path in checkouts.items()},
        "flags": options.flags,
        "runs": runs,
        "success_present_less_baseline": vars(difference),
        "cpu_seconds_present_over_baseline": vars(ratio),
    }
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({name: report[name] for name in list(report)[-2:]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
