"""Whether this machine has what a configuration needs; each problem is one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from openrlhf_gagpo import machine
from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config.models import cached, check_hub_model, check_model_folder, offline
from openrlhf_gagpo.config.placement import Plan
from openrlhf_gagpo.config.reading import GAIN, about_environment, env_options, say
from openrlhf_gagpo.config.resolve import Config, uses_critic
from openrlhf_gagpo.credit import registry as estimators
from openrlhf_gagpo.files import LOCK

__all__ = ["device_problems", "machine_problems"]

_RUN_FILES = ("run.json", "config.yaml", "metrics.jsonl", "eval.jsonl", "rollouts")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def machine_problems(config: Config, plan: Plan) -> Iterator[str]:
    """Yield what is missing: packages, the run's folder, the model, devices, the environment and its data."""
    for rule in (_trackers, _adapters, _run_dir, _model):
        yield from rule(config)
    yield from device_problems(config, plan)
    yield from _environment(config)


def device_problems(config: Config, plan: Plan) -> Iterator[str]:
    """Yield why the devices of this machine do not do."""
    if BACKENDS[plan.backend].one_process:
        if plan.device == "cuda" and not machine.has_cuda():
            yield "--train.device cuda needs an NVIDIA GPU, but this machine shows none; use --train.device cpu"
    elif plan.device == "cpu":
        yield from _on_cpu(config)
    else:
        yield from _on_gpus(config, plan)


def _trackers(config: Config) -> Iterator[str]:
    wanted = {"logger.tensorboard_dir": "tensorboard", "logger.wandb.key": "wandb"}
    for flag, package in wanted.items():
        # A folder of that name, such as wandb's own for its runs, is a package without an origin.
        if config.get(flag) and ((spec := find_spec(package)) is None or spec.origin is None):
            yield f"{say(config, flag)} logs with {package}, which is not installed; install it, or leave the flag out"


def _adapters(config: Config) -> Iterator[str]:
    if config.ds.lora.rank and find_spec("peft") is None:
        yield f"{say(config, 'ds.lora.rank')} needs the package peft, which is not installed; install it"


def _run_dir(config: Config) -> Iterator[str]:
    path = Path(config.run_dir)
    yield from _folder(path, say(config, "run_dir"))
    present = sorted({item.name for item in path.iterdir()} - {LOCK}) if os.path.isdir(path) else []
    for name in ("ckpt.path", "ckpt.output_dir", "logger.tensorboard_dir"):
        if config.get(name):
            yield from _folder(Path(config.get(name)), say(config, name))
    held = [name for name in _RUN_FILES if name in present]
    if held and not config.ckpt.load_enable:
        yield f"{path} already holds a run ({held[0]}); give another --run_dir, or resume it with --ckpt.load_enable"
    if present and not held:
        yield f"{path} is not empty and holds no run ({present[0]} is there); give a new folder with --run_dir"


def _folder(path: Path, flag: str) -> Iterator[str]:
    """Yield why a folder can be neither used nor made."""
    where = f"{flag} {path}"
    try:
        if path.exists() and not path.is_dir():
            yield f"{where} is a file; give a folder"
            return
        home = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
    except OSError as error:
        yield f"{where} cannot be used: {error.strerror}; give a folder elsewhere"
        return
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        yield f"{where} cannot be made: {home} cannot be written; give a folder elsewhere"


def _model(config: Config) -> Iterator[str]:
    if not config.actor.model_name_or_path:
        yield "no model is given; set --actor.model_name_or_path to a model folder or a Hugging Face name"
        return
    yield from _model_at("actor.model_name_or_path", config)
    if uses_critic(config) and config.critic.model_name_or_path != config.actor.model_name_or_path:
        # Policy and critic read the same token ids, so one tokenizer does for both.
        yield from _model_at("critic.model_name_or_path", config, tokenizer=False)


def _model_at(flag: str, config: Config, *, tokenizer: bool = True) -> Iterator[str]:
    name = config.get(flag)
    # os.path takes names for which pathlib raises: those of unknown users, and longer ones than a file may have.
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        yield from check_model_folder(Path(folder), flag, tokenizer=tokenizer)
    elif os.path.exists(folder) or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        yield f"there is no model folder {name}; check --{flag}"
    elif not cached(name):
        if offline():
            yield f"there is no model folder {name}, and the hub is switched off (HF_HUB_OFFLINE); give a local folder"
        elif not config.dry_run:
            yield from check_hub_model(name)


def _on_gpus(config: Config, plan: Plan) -> Iterator[str]:
    if config.ds.ring_attn_size > 1 and find_spec("ring_flash_attn") is None:
        yield "ds.ring_attn_size above 1 needs the package ring-flash-attn; install it, or leave the flag out"
    present = machine.gpus()
    if not config.ray.address and present is not None and plan.gpus > present:
        yield (
            f"the placement needs {plan.gpus} GPUs, but this machine shows {present}; lower actor.num_gpus_per_node or "
            "vllm.num_engines, share GPUs with --train.colocate_all, or join a cluster with --ray.address"
        )


def _on_cpu(config: Config) -> Iterator[str]:
    models = {"actor": True, "ref": config.algo.kl.init_coef > 0, "critic": uses_critic(config)}
    several = [
        name
        for name, used in models.items()
        if used and config.get(f"{name}.num_nodes") * config.get(f"{name}.num_gpus_per_node") > 1
    ]
    if config.ds.zero_stage == 3 and several:
        yield (
            f"ds.zero_stage 3 with several workers of a model ({', '.join(several)}) computes wrong numbers on a "
            "machine without GPUs; use stage 2"
        )
    for name in ("vllm.tensor_parallel_size", "ds.ring_attn_size", "ds.tensor_parallel_size"):
        if config.get(name) > 1:
            yield f"{say(config, name)} {config.get(name)} needs GPUs, but this machine has none; leave it at 1"
    for name in ("vllm.enable_sleep", "ds.enable_sleep", "ds.use_liger_kernel"):
        if config.get(name):
            yield f"{say(config, name)} needs a GPU, but this machine has none; remove it"
    if "flash" in config.ds.attn_implementation:
        yield f"ds.attn_implementation {config.ds.attn_implementation} needs a GPU, but this machine has none; use sdpa"


def _environment(config: Config) -> Iterator[str]:
    from agent_envs import registry
    from agent_envs.base import EnvError

    env = config.env
    if env.eval_split is None and (config.eval_only or config.eval.steps > 0):
        yield f"{'--eval_only' if config.eval_only else 'eval.steps'} needs a split to play; set --env.eval_split"
    if not env.name:
        yield "no environment is given; set --env.name (gagpo env list shows what there is)"
        return
    try:
        instance = registry.make(env.name, **env_options(config))
        try:
            estimator = config.algo.advantage.estimator
            if GAIN in estimators.get(estimator).needs and not instance.prompt.answer:
                yield (
                    f"{estimator} asks how likely the golden answer becomes, and {env.name} has none; choose another "
                    "--algo.advantage.estimator, or an environment with answers, such as a search QA"
                )
            for name in ("env.split", "env.eval_split"):
                split = config.get(name)
                if split is None:
                    continue
                if split not in instance.splits:
                    yield f"{name} is {split!r}; {env.name} has {', '.join(instance.splits)}"
                elif not instance.tasks(split):
                    yield f"{name} {split!r} of {env.name} has no tasks; check env.options"
        finally:
            instance.close()
    except (EnvError, ValueError, TypeError, OSError) as error:
        yield about_environment(config, error)
