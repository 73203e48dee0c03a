"""All that can be said about a configuration before anything expensive starts, one sentence at a time."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openrlhf_gagpo import machine
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.placement import Plan, place
from openrlhf_gagpo.config.resolve import COMMAND_LINE, DEFAULT, DERIVED, Config
from openrlhf_gagpo.errors import ConfigError

__all__ = ["check", "env_options"]

_AT_LEAST_ONE = (
    "actor.num_nodes", "actor.num_gpus_per_node", "ref.num_nodes", "ref.num_gpus_per_node", "vllm.tensor_parallel_size",
    "ds.tensor_parallel_size", "ds.ring_attn_size", "ds.ring_attn_head_stride", "ds.zpg", "env.max_steps",
    "env.workers", "rollout.batch_size", "rollout.n_samples_per_prompt", "rollout.micro_batch_size",
    "rollout.max_tokens_per_gpu", "rollout.max_new_tokens", "rollout.concurrency", "data.max_len", "train.batch_size",
    "train.micro_batch_size", "train.max_epochs", "train.max_tokens_per_gpu", "train.num_iterations", "train.threads",
    "eval.tasks", "eval.n_samples_per_prompt", "ckpt.max_num", "logger.logging_steps",
)  # fmt: skip
_OFF_OR_POSITIVE = ("eval.steps", "ckpt.save_steps")
_NOT_NEGATIVE = (
    "rollout.history_length", "eval.temperature", "algo.kl.init_coef", "actor.adam.weight_decay",
    "actor.max_norm", "train.seed", "ray.num_gpus", "algo.advantage.inadmissible_penalty",
)  # fmt: skip
_POSITIVE = (
    "env.reset_timeout", "env.step_timeout", "rollout.temperature", "actor.adam.lr", "actor.adam.eps", "actor.muon.lr",
    "actor.eps_clip",
)  # fmt: skip
_SHARES = ("rollout.top_p", "vllm.gpu_memory_utilization")
_SHARES_WITH_ZERO = ("actor.lr_warmup_ratio", "actor.min_lr_ratio")
_SCHEDULERS = (
    "constant", "constant_with_warmup", "cosine", "cosine_with_min_lr", "cosine_with_restarts",
    "cosine_warmup_with_min_lr", "inverse_sqrt", "linear", "polynomial",
)  # fmt: skip
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_RUN_FILES = ("run.json", "config.yaml", "metrics.jsonl", "eval.jsonl", "rollouts")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check(config: Config) -> Plan:
    """Return the placement plan of ``config``, or raise ``ConfigError`` with the first thing that is wrong with it."""
    plan = place(config)
    for rule in (_numbers, _backend, _batches, _algorithm, _run_dir, _model):
        for sentence in rule(config):
            raise ConfigError(sentence)
    for sentence in _local(config, plan) if plan.backend == "local" else _distributed(config, plan):
        raise ConfigError(sentence)
    _environment(config)
    return plan


def env_options(config: Config) -> dict[str, Any]:
    """Keyword options of the environment: ``env.options``, and ``max_steps`` where ``env.max_steps`` is set."""
    limit = {} if config.env.max_steps is None else {"max_steps": config.env.max_steps}
    return {**config.env.options, **limit}


def _numbers(config: Config) -> Iterator[str]:
    bounds = [
        (_AT_LEAST_ONE, "at least 1", lambda x: x >= 1),
        (_OFF_OR_POSITIVE, "at least 1, or -1 for never", lambda x: x == -1 or x >= 1),
        (_NOT_NEGATIVE, "0 or more", lambda x: 0 <= x < math.inf),
        (_POSITIVE, "more than 0", lambda x: 0 < x < math.inf),
        (_SHARES, "more than 0 and at most 1", lambda x: 0 < x <= 1),
        (_SHARES_WITH_ZERO, "between 0 and 1", lambda x: 0 <= x <= 1),
    ]
    for names, words, holds in bounds:
        for name in names:
            value = config.get(name)
            if value is not None and not holds(value):
                yield f"{_say(config, name)} is {value}; it must be {words}"
    if not all(0 <= beta < 1 for beta in config.actor.adam.betas):
        yield f"{_say(config, 'actor.adam.betas')} are {_pair(config.actor.adam.betas)}; both must be from 0 to below 1"
    if not all(0 < bound < math.inf for bound in config.actor.eps_clip_low_high):
        clip = _pair(config.actor.eps_clip_low_high)
        yield f"{_say(config, 'actor.eps_clip_low_high')} is {clip}; both must be more than 0"
    if config.ds.zero_stage not in (0, 1, 2, 3):
        yield f"{_say(config, 'ds.zero_stage')} is {config.ds.zero_stage}; it must be 0, 1, 2 or 3"


def _backend(config: Config) -> Iterator[str]:
    flags = all_flags()
    for name in config.unused():
        if config.origin(name) == COMMAND_LINE:
            who = flags[name].disposition.value
            yield f"--{name} is for {who} only; remove it, or leave --backend {config.backend} out"


def _batches(config: Config) -> Iterator[str]:
    if config.rollout.n_samples_per_prompt < 2 and not config.eval_only:
        yield (
            f"{_say(config, 'rollout.n_samples_per_prompt')} is 1, but {config.algo.advantage.estimator} compares the "
            "episodes of a group; set it to 2 or more"
        )
    if config.data.max_len <= config.rollout.max_new_tokens:
        yield (
            f"{_say(config, 'data.max_len')} ({config.data.max_len}) counts prompt and response together, so it must "
            f"be more than rollout.max_new_tokens ({config.rollout.max_new_tokens})"
        )
    if config.train.micro_batch_size > config.train.batch_size:
        yield (
            f"{_say(config, 'train.micro_batch_size')} is {config.train.micro_batch_size}, more than train.batch_size "
            f"({config.train.batch_size}); lower it"
        )


def _algorithm(config: Config) -> Iterator[str]:
    kl = config.algo.kl
    if kl.init_coef > 0 and not kl.use_loss:
        yield "a KL inside the reward is not supported; set algo.kl.use_loss, or algo.kl.init_coef to 0"
    advantage = config.algo.advantage
    # An option of other estimators is None.
    penalised = (advantage.invalid_penalty or 0) > 0 and advantage.invalid_penalty_mode != "none"
    if advantage.inadmissible_penalty is not None and not (advantage.invalid_rule == "format" and penalised):
        yield (
            f"{_say(config, 'algo.advantage.inadmissible_penalty')} stands beside a penalty of malformed responses: "
            "set algo.advantage.invalid_penalty above 0 and its mode not to none, leave algo.advantage.invalid_rule at "
            "format, or penalise unrecognised actions alone with algo.advantage.invalid_rule action"
        )
    if config.actor.dual_clip is not None and not config.actor.dual_clip > 1:
        yield f"{_say(config, 'actor.dual_clip')} is {config.actor.dual_clip}; it must be more than 1"
    if config.actor.lr_scheduler not in _SCHEDULERS:
        offer = ", ".join(_SCHEDULERS)
        yield f"{_say(config, 'actor.lr_scheduler')} is {config.actor.lr_scheduler!r}; choose one of {offer}"
    attention, dtype = config.ds.attn_implementation, config.ds.param_dtype
    if "flash" in attention and dtype == "fp32":
        yield f"ds.attn_implementation {attention} cannot compute in fp32; use --ds.attn_implementation sdpa"
    wants_eval = config.eval_only or config.eval.steps > 0
    if wants_eval and config.env.eval_split is None:
        yield f"{'--eval_only' if config.eval_only else 'eval.steps'} needs a split to play; set --env.eval_split"


def _run_dir(config: Config) -> Iterator[str]:
    path = Path(config.run_dir)
    if path.exists() and not path.is_dir():
        yield f"{_say(config, 'run_dir')} {path} is a file; give a folder"
    if config.ckpt.load_enable or not path.is_dir():
        return
    found = [name for name in _RUN_FILES if (path / name).exists()]
    if found:
        yield f"{path} already holds a run ({found[0]}); give another --run_dir, or resume it with --ckpt.load_enable"


def _model(config: Config) -> Iterator[str]:
    name = config.actor.model_name_or_path
    if not name:
        yield "no model is given; set --actor.model_name_or_path to a model folder or a Hugging Face name"
        return
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            yield f"{name} has no config.json, so it is not a model folder; check --actor.model_name_or_path"
        if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
            yield f"{name} has no tokenizer (tokenizer.json or another of its files); save one next to the model"
        if not any(True for pattern in ("*.safetensors", "*.bin") for _ in folder.glob(pattern)):
            yield f"{name} has no weights (*.safetensors or *.bin); save the model there first"
    elif folder.exists() or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        yield f"there is no model folder {name}; check --actor.model_name_or_path"
    elif _offline() and not _cached(name):
        yield f"there is no model folder {name}, and the hub is switched off (HF_HUB_OFFLINE); give a local folder"


def _local(config: Config, plan: Plan) -> Iterator[str]:
    if plan.device == "cuda" and not machine.has_cuda():
        yield "--train.device cuda needs an NVIDIA GPU, and this machine shows none; use --train.device cpu"
    if config.ds.param_dtype == "fp16":
        yield f"{_say(config, 'ds.param_dtype')} fp16 needs loss scaling, which --backend local lacks; use bf16 or fp32"


def _distributed(config: Config, plan: Plan) -> Iterator[str]:
    actor, ref, vllm, ds, train = config.actor, config.ref, config.vllm, config.ds, config.train
    workers = actor.num_nodes * actor.num_gpus_per_node
    engine_gpus = (vllm.num_engines or 0) * vllm.tensor_parallel_size
    if engine_gpus < 1:
        yield "the distributed backend generates with vLLM; set --vllm.num_engines to 1 or more, or use --backend local"
    if train.colocate_all and engine_gpus != workers:
        yield (
            f"train.colocate_all wants vllm.num_engines x vllm.tensor_parallel_size ({engine_gpus}) equal to "
            f"actor.num_nodes x actor.num_gpus_per_node ({workers})"
        )
    shared = train.colocate_all or train.colocate_actor_ref
    same = (ref.num_nodes, ref.num_gpus_per_node) == (actor.num_nodes, actor.num_gpus_per_node)
    if shared and config.algo.kl.init_coef > 0 and not same:
        yield "policy and reference model share GPUs; leave out ref.num_nodes and ref.num_gpus_per_node"
    split = ds.ring_attn_size * ds.tensor_parallel_size
    if workers % split:
        yield (
            f"{workers} policy workers cannot be divided by ds.ring_attn_size x ds.tensor_parallel_size ({split}); "
            "change actor.num_gpus_per_node"
        )
    if vllm.enable_sleep and not train.colocate_all:
        yield "vllm.enable_sleep frees memory for models on the same GPUs; add --train.colocate_all or remove it"
    if train.dynamic_batch_enable and not ds.packing_samples:
        yield "train.dynamic_batch_enable packs rows; remove --ds.no_packing_samples"
    if config.ray.address and config.ray.num_gpus is not None:
        yield "ray.num_gpus is for a Ray that is started here; remove it or ray.address"
    if config.ray.num_gpus is not None and config.ray.num_gpus < plan.gpus:
        yield f"ray.num_gpus is {config.ray.num_gpus}, but the placement needs {plan.gpus}; raise it or leave it out"
    yield from _on_cpu(config, workers) if plan.device == "cpu" else _on_gpus(config, plan)


def _on_gpus(config: Config, plan: Plan) -> Iterator[str]:
    present = machine.gpus()
    if not config.ray.address and present is not None and plan.gpus > present:
        yield (
            f"the placement needs {plan.gpus} GPUs and this machine shows {present}; lower actor.num_gpus_per_node or "
            "vllm.num_engines, share GPUs with --train.colocate_all, or join a cluster with --ray.address"
        )


def _on_cpu(config: Config, workers: int) -> Iterator[str]:
    if config.ds.zero_stage == 3 and workers > 1:
        yield "ds.zero_stage 3 with several workers gives wrong weights on a machine without GPUs; use stage 2"
    for name in ("vllm.enable_sleep", "ds.enable_sleep", "ds.adam_offload", "ds.use_liger_kernel"):
        if config.get(name):
            yield f"{_say(config, name)} needs a GPU, and there is none here; remove it"
    if "flash" in config.ds.attn_implementation:
        yield f"ds.attn_implementation {config.ds.attn_implementation} needs a GPU, and there is none here; use sdpa"


def _environment(config: Config) -> None:
    from agent_envs import registry
    from agent_envs.base import EnvError

    env = config.env
    if not env.name:
        raise ConfigError("no environment is given; set --env.name, for example to vault")
    if env.max_steps is not None and "max_steps" in env.options:
        raise ConfigError("the step limit is given twice; keep env.max_steps and remove max_steps from env.options")
    try:
        for plugin in env.plugin:
            registry.load_plugin(plugin)
        instance = registry.make(env.name, **env_options(config))
        try:
            for name in ("env.split", "env.eval_split"):
                split = config.get(name)
                if split is None:
                    continue
                if split not in instance.splits:
                    raise ConfigError(f"{name} is {split!r}; {env.name} has {', '.join(instance.splits)}")
                if not instance.tasks(split):
                    raise ConfigError(f"{name} {split!r} of {env.name} has no tasks; check env.options")
        finally:
            instance.close()
    except (registry.RegistryError, EnvError, ValueError, TypeError, OSError) as error:
        raise ConfigError(f"env.name {env.name}: {str(error).rstrip('.')}") from None


def _say(config: Config, name: str) -> str:
    """``name`` with the place to change it."""
    origin = config.origin(name)
    if origin == COMMAND_LINE:
        return f"--{name}"
    return name if origin in (DEFAULT, DERIVED) else f"{name} ({origin})"


def _pair(values: list[float]) -> str:
    return " ".join(map(str, values))


def _offline() -> bool:
    return any(
        os.environ.get(name, "0").lower() in ("1", "true", "yes", "on")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _cached(name: str) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return (cache / f"models--{name.replace('/', '--')}").is_dir()
