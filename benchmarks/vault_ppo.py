"""PPO with a critic on the vault over several seeds: rise in success, and what the critic predicts on held-out tasks.

Beside each run stands one whose critic is constant (a value head of zeros that is not trained), from the same start.
Episodes of the evaluation are on tasks that are never trained on. The vault shows the steps that are left, because the
outcome depends on them: without it no value of the visible state predicts much.

    python benchmarks/vault_ppo.py --out results/vault_ppo
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recording import REPOSITORY, gagpo, keep, machine
from transformers import AutoModelForSequenceClassification

from openrlhf_gagpo.report import plot_curve
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import mean_interval

RECIPE = REPOSITORY / "examples/recipes/methods/vault/gae.yaml"
CLOCK = ("--env.options", "clock=true")
SETTINGS = (
    # Many tasks with one episode each, since nothing is compared inside a group, and more and longer critic training.
    "--rollout.batch_size", "64", "--rollout.n_samples_per_prompt", "1", "--train.batch_size", "80",
    "--train.micro_batch_size", "80", "--critic.freezing_steps", "4", "--algo.advantage.lambd", "0.9",
    "--actor.adam.lr", "2.5e-4", "--actor.lr_scheduler", "constant", "--train.num_iterations", "16",
    "--env.max_steps", "14", "--eval.steps", "4", "--eval.tasks", "256", "--eval.temperature", "1.0",
)  # fmt: skip
KINDS = ("learned", "constant")
QUALITY = ("explained_variance", "return_explained_variance")
SETTLED = 8
"""First iteration from which the critic is judged."""


def save_constant_critic(model: Path, folder: Path) -> None:
    """Write a critic with the model's weights that values every state at 0."""
    critic = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    torch.nn.init.zeros_(critic.score.weight)
    critic.save_pretrained(folder)


def play_seed(scratch: Path, flags: list[str], seed: int) -> list[dict[str, Any]]:
    """Train from one start with either critic; the runs' folders are named after critic and seed."""
    start, constant = scratch / f"start-{seed}", scratch / f"constant-{seed}"
    gagpo("warmstart", "--env.name", "vault", *CLOCK, "--out", str(start), "--seed", str(seed))
    save_constant_critic(start, constant)
    still = ["--critic.model_name_or_path", str(constant), "--critic.adam.lr", "1e-30"]
    return [
        train(scratch / f"{kind}-seed{seed}", start, kind, seed, [*own, *flags])
        for kind, own in zip(KINDS, ([], still), strict=True)
    ]


def train(folder: Path, start: Path, kind: str, seed: int, flags: list[str]) -> dict[str, Any]:
    """Train one run and return its evaluations in short."""
    gagpo(
        "train", "--config", str(RECIPE), "--backend", "local", "--train.seed", str(seed),
        "--actor.model_name_or_path", str(start), "--run_dir", str(folder), *CLOCK, *SETTINGS, *flags,
    )  # fmt: skip
    evaluations = RunFolder.open(folder).evals()
    quality = {name: {str(row["iteration"]): row[f"critic/{name}"] for row in evaluations} for name in QUALITY}
    return {
        "critic": kind,
        "seed": seed,
        "before": evaluations[0]["eval/success"],
        "after": evaluations[-1]["eval/success"],
        "tasks": evaluations[-1]["eval/tasks"],
        **quality,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at the same time")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of gagpo train")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        play = partial(play_seed, Path(scratch), options.flags)
        runs = [run for seed in pool.map(play, options.seeds) for run in seed]
        folders = {
            kind: keep([Path(scratch) / f"{kind}-seed{seed}" for seed in options.seeds], options.out, scratch)
            for kind in KINDS
        }
    summary: dict[str, Any] = {"machine": machine(), "flags": options.flags, "runs": runs}
    for kind in KINDS:
        chosen = [run for run in runs if run["critic"] == kind]
        summary[kind] = {"rise": asdict(mean_interval([run["after"] - run["before"] for run in chosen]))}
        for name in QUALITY:
            settled = [value for run in chosen for at, value in run[name].items() if int(at) >= SETTLED]
            summary[kind][f"{name}_settled"] = {"mean": sum(settled) / len(settled), "least": min(settled)}
        plot_curve(
            folders[kind],
            options.out / f"{kind}.png",
            metrics={"success": "eval/success"},
            title=f"vault, PPO with a {kind} critic: sampled success on 256 held-out tasks",
        )
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({kind: summary[kind] for kind in KINDS}, indent=2) + "\n")


if __name__ == "__main__":
    main()
