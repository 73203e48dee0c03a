"""A tiny word-level model that plays a four-room vault now and then, and the flags of runs with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.paths import REPOSITORY

ROOT = REPOSITORY
PLUGINS = Path(__file__).with_name("faulty_vaults.py")

_OPTIONS = {"size": 3, "keys": 1, "train_tasks": 8, "valid_tasks": 4, "test_tasks": 0}
_MAX_STEPS = 10
_FLAGS: dict[str, object] = {
    "backend": "local",
    "train.device": "cpu",
    "train.threads": 1,
    "env.name": "vault",
    "env.options": json.dumps(_OPTIONS),
    "env.max_steps": _MAX_STEPS,
    "env.workers": 1,
    "env.eval_split": "valid",
    "rollout.batch_size": 2,
    "rollout.n_samples_per_prompt": 4,
    "rollout.max_new_tokens": 6,
    "rollout.history_length": 0,
    "rollout.think": False,
    "rollout.action_tags": False,
    "rollout.list_actions": False,
    "rollout.chat_template": "none",
    "data.max_len": 64,
    "train.batch_size": 32,
    "train.micro_batch_size": 16,
    "train.num_iterations": 2,
    "algo.advantage.estimator": "gagpo",
    "algo.advantage.drop_reward_free_groups": False,
    # Even a model that never wins learns something: which actions are impossible.
    "algo.advantage.invalid_penalty": 0.0,
    "algo.advantage.inadmissible_penalty": 0.1,
    "algo.kl.init_coef": 0.01,
    "actor.adam.lr": 1e-3,
    "actor.lr_scheduler": "constant",
    "ds.param_dtype": "fp32",
    "eval.steps": 1,
    "eval.temperature": 1.0,
    "ckpt.save_steps": 1,
}


def save_model(folder: Path, *, steps: int = 40, **options: object) -> None:
    """Clone a few demonstrations and save model and tokenizer; ``options`` replace those of the vault."""
    from agent_envs import make
    from openrlhf_gagpo.warmstart.pipeline import warm_start
    from openrlhf_gagpo.warmstart.settings import WarmstartSettings

    settings = WarmstartSettings(
        env_name="vault",
        out=folder,
        episodes=80,
        noise=0.3,
        hidden=32,
        heads=1,
        ffn=64,
        max_positions=128,
        steps=steps,
        batch_size=32,
        lr=1e-2,
        device="cpu",
    )
    warm_start(settings, make("vault", max_steps=_MAX_STEPS, **(_OPTIONS | options)), lambda line: None)


def arguments(model: str | Path, run_dir: str | Path, **changes: object) -> list[str]:
    """Command line of a run; ``env__name="x"`` replaces or adds ``--env.name x``."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    flags = _FLAGS | {"actor.model_name_or_path": model, "run_dir": run_dir} | named
    words = ["train"]
    for name, value in flags.items():
        if value is False:
            name = ".".join([*name.split(".")[:-1], "no_" + name.split(".")[-1]])
        words.append(f"--{name}")
        if not isinstance(value, bool):
            words.append(str(value))
    return words


def start(argv: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """``gagpo`` with these arguments, in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [sys.executable, "-m", "openrlhf_gagpo.cli.main", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def write_recipe(path: Path, model: str | Path, **changes: object) -> Path:
    """Write the flags of a run as a recipe; ``env__name="x"`` replaces or adds ``env.name: x``."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    flags = _FLAGS | {"actor.model_name_or_path": str(model), "env.options": _OPTIONS} | named
    path.write_text(json.dumps(flags), encoding="utf-8")  # YAML contains JSON.
    return path
