"""A prompt per step against one transcript per episode: tokens, times and prefix-cache hits of training, in one run.

For every environment a tiny model is cloned for each context from the same demonstrations and trained for a few
iterations on the same tasks, on the distributed backend, whose engine counts what it found in its prefix cache (in
blocks of 128 tokens on a CPU). Data must be there: the folders are those that the CPU recipes name.

    python benchmarks/contexts.py --data data --out benchmarks/results/contexts.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recording import REPOSITORY, machine

from openrlhf_gagpo.rollout.records import read_episodes
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.runfolder import RunFolder

RECIPES = REPOSITORY / "examples/recipes"
CONTEXTS = ("window", "transcript")
# Per environment: its recipe and options, the history that a windowed prompt needs, and how a model is cloned.
CASES: dict[str, dict[str, Any]] = {
    "alfworld": {
        "recipe": "alfworld_cpu.yaml",
        "options": ["state_key=situation", "max_steps=20"],
        "history": 2,
        "max_len": 2048,
        "clone": "--rollout.list_actions --layers 3 --episodes 800 --epochs 4",
        "batch_size": {"transcript": 2},  # A sequence is a whole episode there.
    },
    "webshop": {
        "recipe": "webshop_cpu.yaml",
        "options": ["test_goals=50", "observation=text_rich", "nouns=words", "max_steps=10"],
        "history": 2,
        "max_len": 8192,  # Ten pages of a shop.
        "clone": "--rollout.list_actions --episodes 300 --epochs 6 --max_positions 8192",
        "batch_size": {"transcript": 4},
    },
    "search_qa": {
        "recipe": "search_qa_cpu.yaml",
        "options": ["max_steps=4"],
        "history": 4,
        "max_len": 2048,
        "clone": "--noise 0.1 --episodes 1500 --epochs 4",
    },
}
FOLDERS = {"alfworld": "alfworld", "webshop": "webshop", "search_qa": "search"}
PHASES = ("rollout", "forward", "update")


def gagpo(*words: str) -> None:
    """Run a command of gagpo; its output is kept from the terminal unless it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "openrlhf_gagpo.cli.main", *words], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"gagpo {' '.join(words)} failed:\n{done.stderr[-2000:]}")


def wording(context: str, history: int) -> list[str]:
    """Return the flags of a context."""
    return ["--rollout.context", context, *(["--rollout.history_length", str(history)] if context == "window" else [])]


def clone(environment: str, context: str, data: Path, out: Path) -> None:
    """Make the starting model of an environment and context."""
    case = CASES[environment]
    batch = case.get("batch_size", {}).get(context, 16)
    gagpo(
        "warmstart", "--env.name", environment, "--env.options", f"data_dir={data}", *case["options"],
        *wording(context, case["history"]), *case["clone"].split(), "--batch_size", str(batch),
        "--out", str(out), "--eval.tasks", "0",
    )  # fmt: skip


def train(environment: str, context: str, data: Path, model: Path, out: Path, iterations: int) -> RunFolder:
    """Train for some iterations without evaluations."""
    case = CASES[environment]
    gagpo(
        "train", "--config", str(RECIPES / case["recipe"]), "--backend", "distributed",
        "--env.options", f"data_dir={data}", *case["options"][:-1], *wording(context, case["history"]),
        "--actor.model_name_or_path", str(model), "--run_dir", str(out), "--data.max_len", str(case["max_len"]),
        "--rollout.batch_size", "8", "--rollout.n_samples_per_prompt", "8",
        "--vllm.enable_prefix_caching", "--train.num_iterations", str(iterations), "--eval.no_before_train",
        "--eval.no_after_train", "--eval.steps", "-1", "--no_report",
    )  # fmt: skip
    return RunFolder.open(out)


def tokens_read(episodes: Sequence[Episode]) -> int:
    """Tokens of the sequences that training reads: of the longest step of each."""
    longest: dict[tuple[str, str, int], int] = {}
    for episode in episodes:
        for step in episode.steps:
            key = (episode.group, episode.trajectory, step.sequence)
            longest[key] = max(longest.get(key, 0), len(step.prompt_ids) + len(step.response_ids))
    return sum(longest.values())


def measure(run: RunFolder) -> dict[str, float]:
    """Return means over all iterations but the first one, which warms up; times per step are medians."""
    rows = run.metrics()[1:]
    episodes = [episode for row in rows for episode in read_episodes(run.rollout_path(int(row["iteration"])))]
    steps = sum(len(episode.steps) for episode in episodes)

    def mean(name: str) -> float:
        return statistics.fmean(row[name] for row in rows)

    seconds = {
        f"{phase}_ms_per_step": 1000 * statistics.median(row[f"time/{phase}"] / row["rollout/steps"] for row in rows)
        for phase in PHASES
    }
    return {
        "success": mean("rollout/success"),
        "steps_per_episode": steps / len(episodes),
        "prompt_tokens": mean("rollout/prompt_tokens"),
        "tokens_read_per_step": tokens_read(episodes) / steps,
        "prefix_cache_share": mean("rollout/prefix_cache_share"),
        **seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with alfworld, webshop and search")
    parser.add_argument("--environments", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--models", type=Path, help="folder that keeps the cloned models; unset: made anew")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        models = options.models or Path(scratch) / "models"
        for environment in options.environments:
            data = (options.data / FOLDERS[environment]).resolve()
            found = {}
            for context in CONTEXTS:
                model = models / f"{environment}-{context}"
                if not (model / "config.json").is_file():
                    clone(environment, context, data, model)
                folder = Path(scratch) / f"{environment}-{context}"
                found[context] = measure(train(environment, context, data, model, folder, options.iterations))
            compared = ("tokens_read_per_step", *(f"{phase}_ms_per_step" for phase in PHASES))
            ratios = {name: found["transcript"][name] / found["window"][name] for name in compared}
            results[environment] = found | {"transcript_over_window": ratios}
            sys.stdout.write(json.dumps({environment: results[environment]}, indent=2) + "\n")
            sys.stdout.flush()
    report = {"machine": machine(), "iterations": options.iterations, "environments": results}
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
