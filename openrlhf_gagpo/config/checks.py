"""All checks of a configuration that run before anything expensive starts; each problem is one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from openrlhf_gagpo import losses
from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config.adapters import adapter_problems
from openrlhf_gagpo.config.families import families
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.machine_checks import machine_problems
from openrlhf_gagpo.config.placement import Plan, place
from openrlhf_gagpo.config.reading import GAIN, about_environment, correction_range, env_options, say
from openrlhf_gagpo.config.resolve import COMMAND_LINE, Config, uses_critic
from openrlhf_gagpo.credit import registry as estimators
from openrlhf_gagpo.errors import ConfigError

__all__ = ["check", "settings_problems"]


def check(config: Config) -> Plan:
    """Return the placement plan of ``config``, or raise ``ConfigError`` for the first problem."""
    plan = place(config)
    for sentence in chain(settings_problems(config, plan), machine_problems(config, plan)):
        raise ConfigError(sentence)
    return plan


def settings_problems(config: Config, plan: Plan) -> Iterator[str]:
    """Yield why no machine could run the configuration."""
    for rule in (_backend, _batches, _algorithm, _correction, _filtering, adapter_problems):
        yield from rule(config)
    yield from _local(config) if BACKENDS[plan.backend].one_process else _distributed(config, plan)
    yield from _environment_settings(config)


def _backend(config: Config) -> Iterator[str]:
    flags = all_flags()
    for name in config.unused():
        if config.origin(name) == COMMAND_LINE:
            who = flags[name].disposition.value
            yield f"--{name} is for {who} only; remove it, or leave out --backend {config.backend}"


def _batches(config: Config) -> Iterator[str]:
    fewest = estimators.get(config.algo.advantage.estimator).group_min
    if config.rollout.n_samples_per_prompt < fewest and not config.eval_only:
        yield (
            f"{say(config, 'rollout.n_samples_per_prompt')} is {config.rollout.n_samples_per_prompt}, but "
            f"{config.algo.advantage.estimator} compares the episodes of a group; set it to {fewest} or more"
        )
    if config.data.max_len <= config.rollout.max_new_tokens:
        yield (
            f"{say(config, 'data.max_len')} ({config.data.max_len}) counts prompt and response together, so it must "
            f"be more than rollout.max_new_tokens ({config.rollout.max_new_tokens})"
        )
    if config.train.micro_batch_size > config.train.batch_size:
        yield (
            f"{say(config, 'train.micro_batch_size')} is {config.train.micro_batch_size}, more than train.batch_size "
            f"({config.train.batch_size}); lower it"
        )


def _algorithm(config: Config) -> Iterator[str]:
    kl = config.algo.kl
    if kl.init_coef > 0 and not kl.use_loss:
        yield "a KL inside the reward is not supported; set algo.kl.use_loss, or algo.kl.init_coef to 0"
    estimator = estimators.get(config.algo.advantage.estimator)
    missing = sorted(estimator.needs - BACKENDS[config.backend].columns - {GAIN})
    if missing:
        yield (
            f"the estimator {estimator.name} needs {', '.join(missing)} of every step, which the {config.backend} "
            "backend cannot compute; choose another --algo.advantage.estimator"
        )
    loss = losses.get(config.actor.policy_loss_type)
    if config.options(families()[0]).token_advantages and not loss.token_advantages:
        yield (
            f"{estimator.name} gives every token an advantage of its own and the policy loss {loss.name} takes one per "
            "action; choose another --actor.policy_loss_type"
        )
    if uses_critic(config) and config.critic.freezing_steps >= config.train.num_iterations:
        yield (
            f"{say(config, 'critic.freezing_steps')} is {config.critic.freezing_steps}, so none of the "
            f"{config.train.num_iterations} iterations would train the policy; lower it"
        )
    attention, dtype = config.ds.attn_implementation, config.ds.param_dtype
    if "flash" in attention and dtype == "fp32":
        yield f"ds.attn_implementation {attention} cannot compute in fp32; use --ds.attn_implementation sdpa"
    evaluation = config.eval
    if evaluation.greedy != "never" and evaluation.temperature == 0:
        yield (
            f"{say(config, 'eval.greedy')} is {evaluation.greedy}, but with eval.temperature 0 every evaluation is "
            "greedy; set it to never, or raise eval.temperature"
        )
    if config.rollout.context == "window":
        yield from _idle(config, "rollout.context transcript", ("rollout.transcript_overflow",))


def _correction(config: Config) -> Iterator[str]:
    chosen, flag = config.algo.advantage, "algo.advantage.is_correction"
    level, mode, gating = chosen.is_correction_level, chosen.is_correction_mode, chosen.is_correction_gating
    if level == "off":
        yield from _idle(config, f"{flag}_level", (f"{flag}_mode", f"{flag}_gating", f"{flag}_threshold"))
        return
    loss = losses.get(config.actor.policy_loss_type)
    if loss.correction is losses.Correction.NONE:
        yield (
            f"the policy loss {loss.name} does not correct for the sampler; set {flag}_level to off, or choose another "
            "--actor.policy_loss_type"
        )
    for name in (f"{flag}_mode", f"{flag}_gating", f"{flag}_threshold"):
        if loss.correction is losses.Correction.OLD_LOG_PROBS and config.get(name) != Config.default(name):
            yield (
                f"{say(config, name)} weighs tokens, but the policy loss {loss.name} compares with the sampler's "
                "log-probabilities instead; remove it"
            )
    threshold = say(config, f"{flag}_threshold")
    if len(chosen.is_correction_threshold) > 2:
        yield f"{threshold} wants HIGH or LOW HIGH, not {len(chosen.is_correction_threshold)} values"
    low, high = correction_range(config)
    if not 0 <= low < high:
        yield f"{threshold} is {low:g} to {high:g}; give numbers that are not negative, the larger one last"
    if mode == "clip" and (level == "seq" or gating != "ratio"):
        yield (
            f"{flag}_mode clip moves a ratio into the range, and there is none to move with {flag}_level {level} and "
            f"{flag}_gating {gating}; use {flag}_mode mask"
        )
    if gating != "ratio" and level == "seq-product":
        yield f"{flag}_level seq-product compares the ratio of a whole action; use {flag}_gating ratio, or level seq"
    if gating == "tv" and high >= 1:
        yield f"{threshold} is {high:g}, but a total variation is at most 1, so it would never apply; lower it"
    if gating != "ratio" and low > 0:
        yield f"{flag}_gating {gating} has only an upper bound; give {flag}_threshold a single value"


def _filtering(config: Config) -> Iterator[str]:
    algo, flag = config.algo, "algo.dynamic_filtering"
    if not algo.dynamic_filtering_enable:
        yield from _idle(config, f"{flag}_enable", (f"{flag}_rule", f"{flag}_range", f"{flag}_max_rounds"))
        return
    if config.eval_only:
        return
    if config.rollout.n_samples_per_prompt < 2:
        yield f"{flag}_enable compares the episodes of a group; set rollout.n_samples_per_prompt to 2 or more"
    low, high = algo.dynamic_filtering_range
    bounds, rule = say(config, f"{flag}_range"), algo.dynamic_filtering_rule
    if not low < high:
        yield f"{bounds} is {low:g} to {high:g}, and no mean score lies in between; give the smaller number first"
    if rule != "range" and [low, high] != Config.default(f"{flag}_range"):
        yield f"{bounds} belongs to {flag}_rule range; remove it, or change the rule from {rule}"


def _idle(config: Config, switch: str, names: Iterable[str]) -> Iterator[str]:
    """Refuse values that do nothing as long as ``switch`` is off."""
    for name in names:
        if config.get(name) != Config.default(name):
            yield f"{say(config, name)} has no effect without --{switch}; set that too, or remove it"


def _local(config: Config) -> Iterator[str]:
    if config.ds.param_dtype == "fp16":
        yield f"{say(config, 'ds.param_dtype')} fp16 needs loss scaling, which --backend local lacks; use bf16 or fp32"
    level = "algo.advantage.is_correction_level"
    # In these runs the local backend takes the sampler's log-probabilities for those before the update.
    if config.get(level) != "off" and config.ds.param_dtype == "fp32" and config.rollout.top_p == 1:
        yield (
            f"{say(config, level)} {config.get(level)} has nothing to correct, because --backend local samples in "
            f"fp32 with the model that it trains; set {level} to off"
        )


def _distributed(config: Config, plan: Plan) -> Iterator[str]:
    actor, ref, vllm, ds, train = config.actor, config.ref, config.vllm, config.ds, config.train
    workers = actor.num_nodes * actor.num_gpus_per_node
    engine_gpus = (vllm.num_engines or 0) * vllm.tensor_parallel_size
    if engine_gpus < 1:
        yield "the distributed backend generates with vLLM; set --vllm.num_engines to 1 or more, or use --backend local"
    if train.colocate_all and engine_gpus != workers:
        yield (
            f"train.colocate_all needs vllm.num_engines x vllm.tensor_parallel_size ({engine_gpus}) to be equal to "
            f"actor.num_nodes x actor.num_gpus_per_node ({workers}); change one of them"
        )
    shared = train.colocate_all or train.colocate_actor_ref
    same = (ref.num_nodes, ref.num_gpus_per_node) == (actor.num_nodes, actor.num_gpus_per_node)
    if shared and config.algo.kl.init_coef > 0 and not same:
        yield "policy and reference model share GPUs; leave out ref.num_nodes and ref.num_gpus_per_node"
    split = ds.ring_attn_size * ds.tensor_parallel_size
    if uses_critic(config):
        critics = config.critic.num_nodes * config.critic.num_gpus_per_node
        if train.colocate_all and critics != workers:
            yield "policy and critic share GPUs; leave out critic.num_nodes and critic.num_gpus_per_node"
        if critics % split:
            yield (
                f"{critics} critic workers cannot be divided by ds.ring_attn_size x ds.tensor_parallel_size ({split}); "
                "change critic.num_gpus_per_node"
            )
    if workers % split:
        yield (
            f"{workers} policy workers cannot be divided by ds.ring_attn_size x ds.tensor_parallel_size ({split}); "
            "change actor.num_gpus_per_node"
        )
    if train.colocate_all and vllm.sync_backend != "nccl":
        yield (
            f"{say(config, 'vllm.sync_backend')} {vllm.sync_backend} does not reach engines on the policy's GPUs, to "
            "which weights go by CUDA IPC; leave it at nccl"
        )
    if vllm.enable_sleep and not train.colocate_all:
        yield "vllm.enable_sleep frees memory for models on the same GPUs; add --train.colocate_all or remove it"
    if train.colocate_all and train.overlap != "none":
        yield (
            f"{say(config, 'train.overlap')} is {train.overlap}, but engines that share the policy's GPUs cannot play "
            "while it is updated; set --train.no_colocate_all, or --train.overlap none"
        )
    evaluates, saves = config.env.eval_split and config.eval.steps == 1, config.ckpt.save_steps == 1
    if train.overlap != "none" and (evaluates or saves) and not config.eval_only:
        yield (
            f"{say(config, 'eval.steps' if evaluates else 'ckpt.save_steps')} is 1, and before an evaluation or a "
            "checkpoint no rollout is played beside the update; raise it, or set train.overlap to none"
        )
    if train.dynamic_batch_enable and not ds.packing_samples:
        yield "train.dynamic_batch_enable packs rows; remove --ds.no_packing_samples"
    if config.ray.address and config.ray.num_gpus is not None:
        yield "ray.num_gpus applies only to a Ray that this command starts; remove it or ray.address"
    if config.ray.num_gpus is not None and config.ray.num_gpus < plan.gpus:
        yield f"ray.num_gpus is {config.ray.num_gpus}, but the placement needs {plan.gpus}; raise it or leave it out"
    if ds.ring_attn_size > 1 and train.logit_chunk:
        yield f"{say(config, 'train.logit_chunk')} does not work with ds.ring_attn_size; set it to 0"
    yield from _deepspeed(config)


def _deepspeed(config: Config) -> Iterator[str]:
    """Refuse what DeepSpeed accepts and then computes wrongly, or fails at after everything was loaded."""
    if config.ds.zero_stage == 0:
        yield "ds.zero_stage 0 makes bf16 updates too small and reports a gradient norm of 0 in fp32; use 1 or 2"
    for section in ("actor", "critic") if uses_critic(config) else ("actor",):
        if config.get(f"{section}.optim") == "muon" and config.ds.adam_offload:
            yield f"ds.adam_offload does not work with Muon; remove it, or set {section}.optim to adam"
        if config.get(f"{section}.optim") == "muon" and config.ds.zero_stage == 3:
            yield f"ds.zero_stage 3 does not work with Muon; use stage 1 or 2, or set {section}.optim to adam"
        if config.get(f"{section}.optim") == "muon" and config.get(f"{section}.max_norm"):
            yield (
                f"{section}.max_norm {config.get(f'{section}.max_norm'):g} would clip Muon's updates after they were "
                f"made orthogonal, where their size no longer is the gradient's; set {section}.max_norm to 0"
            )


def _environment_settings(config: Config) -> Iterator[str]:
    from agent_envs import registry

    env = config.env
    if env.max_steps is not None and "max_steps" in env.options:
        yield "the step limit is given twice; keep env.max_steps and remove max_steps from env.options"
    try:
        for plugin in env.plugin:
            registry.load_plugin(plugin)
        if env.name and not registry.get(env.name).needs.hint():
            registry.check_options(env.name, env_options(config))
    except registry.RegistryError as error:
        yield about_environment(config, error)
