"""A small made-up run, written through the public functions only."""

from __future__ import annotations

import math
import random
from pathlib import Path

from openrlhf_gagpo.rollout.records import write_episodes
from openrlhf_gagpo.rollout.types import Episode, Step
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import wilson_interval

CONFIG = {
    "values": {
        "env": {"name": "vault", "split": "train", "options": {}},
        "actor": {"model_name_or_path": "models/tiny", "adam": {"lr": 5e-4}},
        "algo": {"advantage": {"estimator": "gagpo", "gamma": 0.95}, "kl": {"init_coef": 0.003}},
        "train": {"num_iterations": 24, "seed": 7},
        "rollout": {"think": False},
    },
    "origins": {
        "env.name": "recipe examples/recipes/vault_demo.yaml",
        "algo.kl.init_coef": "estimator gagpo",
        "train.num_iterations": "command line",
        "env.split": "default",
    },
}
PROMPT = "You stand in a room.\n{{ observation }}\nAnswer with <one> action.\n"


def episode(number: int, *, success: bool, steps: int = 4, observation: str = "A door & a <b>key</b>.") -> Episode:
    """An episode whose last step pays 1 when it succeeds."""
    played = [
        Step(
            index=i,
            state_key=f"s{i}",
            next_state_key=f"s{i + 1}",
            observation=observation,
            action="take key" if i % 2 else "open [the] door",
            reward=float(success and i == steps - 1),
            terminated=i == steps - 1 and success,
            truncated=i == steps - 1 and not success,
            format_valid=i != 1,
            admissible=i != 2,
            prompt_ids=[1, 2, 3],
            response_ids=[4, 5],
            sampling_log_probs=[-0.5, -0.25],
            response="<action>take key</action>" if i % 2 else "open [the] door",
        )
        for i in range(steps)
    ]
    return Episode(
        task=f"vault-{number // 4}",
        group=f"g{number // 4}",
        trajectory=f"t{number}",
        env_seed=number,
        steps=played,
        end_reason="terminated" if success else "truncated",
        category="heat" if number % 2 else "cool",
        success=success,
        score=float(success),
        extra={"final_observation": "The vault is open."} if success else {},
    )


def training_row(i: int, seed: int = 7) -> dict[str, float | None]:
    """Plausible numbers for iteration ``i``."""
    noise = random.Random(1000 * seed + i).uniform(-1, 1)
    success = 1 / (1 + math.exp(-(i - 10) / 3)) * 0.85 + 0.03 * noise + 0.04
    return {
        "rollout/success": success,
        "rollout/return": success,
        "rollout/episode_length": 8 - 4 * success + 0.2 * noise,
        "rollout/episodes": 64,
        "rollout/steps": 400,
        "rollout/faulted_episodes": int(i == 5),
        "rollout/skipped_groups": 0,
        "rollout/truncated_share": 1 - success,
        "rollout/format_invalid_share": 0.2 / i,
        "rollout/inadmissible_share": 0.5 / i,
        "rollout/length_capped_share": 0.0,
        "credit/singleton_share": 0.6 - 0.3 * success,
        "credit/state_group_size_mean": 2 + 2 * success,
        "credit/advantage_iqr": 0.8 - 0.3 * success,
        "credit/advantage_std": 0.9 - 0.2 * success,
        "credit/advantage_min": -2.2 + 0.3 * noise,
        "credit/advantage_max": 2.5 + 0.3 * noise,
        "credit/advantage_abs_gt1_share": 0.25,
        "credit/degenerate_group_share": 0.1 + 0.2 * success,
        "credit/reward_free_group_share": 0.4 / i,
        "credit/rows_dropped": 40 // i,
        "policy/grad_norm": math.nan if i == 8 else 0.4 + 0.2 * noise,
        "policy/kl_ref": 0.002 * i,
        "policy/approx_kl": 0.001,
        "policy/entropy": 1.2 - 0.03 * i,
        "policy/clip_share": 0.03 + 0.01 * noise,
        "policy/sampling_logprob_diff_mean": 1e-4,
        "policy/sampling_logprob_diff_max": 3e-3,
        "time/rollout": 9.0 + noise,
        "time/credit": 0.1,
        "time/forward": 2.0,
        "time/update": 5.0,
        "time/sync": 0.4,
        "time/eval": 3.0 if i % 8 == 0 else 0.0,
        "time/iteration": 18.0 + noise + (3.0 if i % 8 == 0 else 0.0),
    }


def eval_row(successes: int, tasks: int) -> dict[str, float | None]:
    """An evaluation with two categories."""
    low, high = wilson_interval(successes, tasks)
    return {
        "eval/success": successes / tasks,
        "eval/success_low": low,
        "eval/success_high": high,
        "eval/return": successes / tasks,
        "eval/episode_length": 8 - 4 * successes / tasks,
        "eval/tasks": tasks,
        "eval/faulted": 0,
        "eval/success/heat": successes / tasks,
        "eval/tasks/heat": tasks // 2,
        "eval/success/cool": min(1.0, 1.1 * successes / tasks),
        "eval/tasks/cool": tasks // 2,
    }


def make_run(path: Path, *, iterations: int = 24, seed: int = 7) -> RunFolder:
    """A finished run with evaluations and episodes."""
    run = RunFolder.create(path, CONFIG, PROMPT, seed=seed, command=["gagpo", "train", "--env.name", "vault"])
    with run.tracked():
        run.append_eval(0, eval_row(3, 64), split="valid_unseen")
        for i in range(1, iterations + 1):
            run.append_metrics(i, training_row(i, seed))
            if i % 8 == 0:
                run.append_eval(i, eval_row(round(64 * i / (iterations + 2)), 64), split="valid_unseen")
            played = [episode(n, success=n < i, steps=16 if n == 1 else 4) for n in range(8)]
            credit = {
                (e.group, e.trajectory, s.index): {"advantage": 0.5 * s.index - 1, "return": e.episode_return}
                for e in played
                for s in e.steps
            }
            write_episodes(run.rollout_path(i), played, credit)
    return run
