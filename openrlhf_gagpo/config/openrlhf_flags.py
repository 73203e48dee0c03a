"""Every flag of OpenRLHF 0.11.2's PPO command line, and what this tool does with it.

Names, types, defaults and choices are OpenRLHF's (a test compares them with its parser); the help is ours. Values that
this tool adds or presets differently are in ``config.flags``.
"""

from __future__ import annotations

from typing import Any

from openrlhf_gagpo.config.flag import (
    AT_LEAST_ONE,
    NEVER_OR_EVERY,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    SHARE_ABOVE_ZERO,
    SHARE_BELOW_ONE,
    Disposition,
    Flag,
    between,
)

__all__ = ["CRITIC_FLAGS", "OPENRLHF_FLAGS"]

_B = Disposition.BOTH
_D = Disposition.DISTRIBUTED


def _flag(name: str, kind: type, default: Any, who: Disposition, text: str, **more: Any) -> Flag:
    return Flag(name, kind, default, who, text, **more)


def _refused(reason: str, *rows: tuple[Any, ...]) -> list[Flag]:
    """Make flags of OpenRLHF on which this tool does not act; ``reason`` completes "... is not supported: "."""
    return [
        _flag(row[0], row[1], row[2], Disposition.REFUSED, reason, **(row[3] if len(row) > 3 else {})) for row in rows
    ]


_PLACEMENT = [
    _flag("actor.num_nodes", int, 1, _D, "nodes of the policy's training workers", bound=AT_LEAST_ONE),
    _flag(
        "actor.num_gpus_per_node", int, 8, _D, "GPUs (training workers) of the policy on each node", bound=AT_LEAST_ONE
    ),
    _flag(
        "ref.num_nodes",
        int,
        1,
        _D,
        "nodes of the reference model; the policy's when they share GPUs",
        bound=AT_LEAST_ONE,
    ),
    _flag("ref.num_gpus_per_node", int, 8, _D, "GPUs of the reference model on each node", bound=AT_LEAST_ONE),
    _flag("ref.offload", bool, False, _D, "keep the reference model's weights in main memory"),
    _flag("train.colocate_actor_ref", bool, False, _D, "let policy and reference model share GPUs"),
    _flag("train.colocate_all", bool, False, _D, "let policy, reference model and vLLM engines share GPUs"),
]
_VLLM = [
    _flag("vllm.num_engines", int, None, _D, "number of vLLM engines"),
    _flag("vllm.tensor_parallel_size", int, 1, _D, "GPUs of one engine", bound=AT_LEAST_ONE),
    _flag(
        "vllm.sync_backend",
        str,
        "nccl",
        _D,
        "how new weights travel to engines: nccl in vLLM's buffers, anything else by OpenRLHF's group",
    ),
    _flag("vllm.sync_with_ray", bool, False, _D, "carry new weights with Ray's collectives"),
    _flag("vllm.enable_prefix_caching", bool, False, _D, "reuse the computed prefix of earlier prompts"),
    _flag("vllm.enforce_eager", bool, False, _D, "use no CUDA graphs in the engines"),
    _flag("vllm.enable_sleep", bool, False, _D, "let engines free their GPU memory while the policy trains"),
    _flag(
        "vllm.gpu_memory_utilization",
        float,
        0.95,
        _D,
        "share of a GPU's memory that an engine may take",
        bound=SHARE_ABOVE_ZERO,
    ),
]
_ALGORITHM = [
    _flag("algo.advantage.lambd", float, 1, _B, "lambda of generalised advantage estimation"),
    _flag("algo.advantage.gamma", float, 1, _B, "discount per environment step"),
    _flag(
        "algo.advantage.estimator",
        str,
        "gae",
        _B,
        "how steps get their advantage",
        choices=("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce"),
    ),
    _flag("algo.advantage.no_std_norm", bool, False, _B, "centre advantages without dividing by their deviation"),
    _flag(
        "algo.advantage.is_correction_level",
        str,
        "off",
        _B,
        "correct for a sampler that differs from the training pass, per token or per action (its mean)",
        choices=("off", "token", "seq"),
    ),
    _flag(
        "algo.advantage.is_correction_mode",
        str,
        "mask",
        _B,
        "what lies outside the threshold is dropped, or its ratio clipped",
        choices=("mask", "clip"),
    ),
    _flag(
        "algo.advantage.is_correction_gating",
        str,
        "ratio",
        _B,
        "what is compared with the threshold: ratio of training pass to sampler, or a divergence of the token",
        choices=("ratio", "binary_kl", "tv"),
    ),
    _flag(
        "algo.advantage.is_correction_threshold",
        float,
        [0.5, 5.0],
        _B,
        "smallest and largest allowed value, or the largest alone",
        nargs="+",
    ),
    _flag("algo.dynamic_filtering_enable", bool, False, _B, "replace groups that a rule calls uninformative"),
    _flag(
        "algo.dynamic_filtering_range",
        float,
        (0, 1),
        _B,
        "mean scores (sums of rewards) strictly between which a group is kept",
        nargs=2,
    ),
    _flag("algo.kl.use_loss", bool, False, _B, "KL to the reference model as a term of the loss"),
    _flag(
        "algo.kl.init_coef", float, 0.01, _B, "weight of the KL term; 0 loads no reference model", bound=NOT_NEGATIVE
    ),
    _flag("algo.kl.estimator", str, "k1", _B, "per-token KL estimate", choices=("k1", "k2", "k3")),
]
_POLICY = [
    _flag("actor.model_name_or_path", str, None, _B, "model folder, or name on the Hugging Face hub"),
    _flag(
        "actor.policy_loss_type",
        str,
        "ppo",
        _B,
        "clips a ratio per token (ppo) or per action (gspo), or bounds it as a weight (cispo)",
        choices=("ppo", "gspo"),
    ),
    _flag(
        "actor.loss_agg_mode",
        str,
        "token-mean",
        _B,
        "each token or each action weighs the same",
        choices=("token-mean", "seq-mean-token-mean"),
    ),
    _flag("actor.eps_clip", float, 0.2, _B, "clip range of the ratio", bound=POSITIVE),
    _flag("actor.eps_clip_low_high", float, None, _B, "clip range below and above 1, separately", nargs=2),
    _flag("actor.dual_clip", float, None, _B, "bound on the loss of negative advantages"),
    _flag("actor.entropy_coef", float, None, _B, "weight of the entropy bonus; 0 only measures it"),
    _flag("actor.gradient_checkpointing_enable", bool, False, _B, "recompute activations in the backward pass"),
    _flag("actor.gradient_checkpointing_reentrant", bool, False, _D, "use torch's reentrant checkpointing"),
    _flag("actor.optim", str, "adam", _D, "optimizer", choices=("adam", "muon")),
    _flag("actor.muon.lr", float, 0.02, _D, "Muon's learning rate", bound=POSITIVE),
    _flag("actor.muon.momentum", float, 0.95, _D, "Muon's momentum"),
    _flag("actor.muon.ns_steps", int, 5, _D, "Newton-Schulz steps of Muon, where DeepSpeed reads them"),
    _flag("actor.muon.nesterov", bool, True, _D, "Nesterov momentum in Muon, where DeepSpeed reads it"),
    _flag("actor.adam.lr", float, 1e-06, _B, "AdamW's learning rate", bound=POSITIVE),
    _flag("actor.adam.betas", float, (0.9, 0.95), _B, "AdamW's decay rates", nargs=2, bound=SHARE_BELOW_ONE),
    _flag("actor.adam.eps", float, 1e-08, _B, "AdamW's epsilon", bound=POSITIVE),
    _flag("actor.adam.weight_decay", float, 0.0, _B, "AdamW's weight decay", bound=NOT_NEGATIVE),
    _flag("actor.lr_scheduler", str, "cosine_with_min_lr", _B, "learning-rate schedule, as transformers names it"),
    _flag("actor.lr_warmup_ratio", float, 0.03, _B, "share of the optimizer steps that warm up", bound=SHARE),
    _flag("actor.min_lr_ratio", float, 0.1, _B, "final learning rate as a share of the first", bound=SHARE),
    _flag("actor.max_norm", float, 1.0, _B, "gradient norm above which gradients are scaled down", bound=NOT_NEGATIVE),
]
_CRITIC = [
    _flag("critic.num_nodes", int, 1, _D, "nodes of the critic; the policy's if all share GPUs", bound=AT_LEAST_ONE),
    _flag("critic.num_gpus_per_node", int, 8, _D, "GPUs of the critic on each node", bound=AT_LEAST_ONE),
    _flag("critic.model_name_or_path", str, None, _B, "model folder the critic starts from; unset: the policy's"),
    _flag(
        "critic.value_clip",
        float,
        0.5,
        _B,
        "change of a value, in units of reward, beyond which its loss does not fall",
        bound=POSITIVE,
    ),
    _flag(
        "critic.freezing_steps",
        int,
        -1,
        _B,
        "iterations at the start that train the critic alone",
        bound=NEVER_OR_EVERY,
    ),
    _flag("critic.save_value_network", bool, False, _B, "write the trained critic beside the model"),
    _flag("critic.optim", str, "adam", _D, "optimizer of the critic", choices=("adam", "muon")),
    _flag("critic.muon.lr", float, 0.02, _D, "Muon's learning rate for the critic", bound=POSITIVE),
    _flag("critic.muon.momentum", float, 0.95, _D, "Muon's momentum for the critic"),
    _flag("critic.muon.ns_steps", int, 5, _D, "Newton-Schulz steps of Muon, where DeepSpeed reads them"),
    _flag("critic.muon.nesterov", bool, True, _D, "Nesterov momentum in Muon, where DeepSpeed reads it"),
    _flag("critic.adam.lr", float, 9e-06, _B, "AdamW's learning rate for the critic", bound=POSITIVE),
    _flag(
        "critic.adam.betas",
        float,
        (0.9, 0.95),
        _B,
        "AdamW's decay rates for the critic",
        nargs=2,
        bound=SHARE_BELOW_ONE,
    ),
    _flag("critic.adam.eps", float, 1e-08, _B, "AdamW's epsilon for the critic", bound=POSITIVE),
    _flag("critic.adam.weight_decay", float, 0.0, _B, "AdamW's weight decay for the critic", bound=NOT_NEGATIVE),
    _flag("critic.lr_scheduler", str, "cosine_with_min_lr", _B, "the critic's learning-rate schedule"),
    _flag("critic.lr_warmup_ratio", float, 0.03, _B, "share of the critic's schedule that warms up", bound=SHARE),
    _flag(
        "critic.min_lr_ratio", float, 0.1, _B, "the critic's final learning rate as a share of the first", bound=SHARE
    ),
    _flag(
        "critic.max_norm",
        float,
        1.0,
        _B,
        "the critic's gradient norm above which gradients are scaled down",
        bound=NOT_NEGATIVE,
    ),
    _flag("ds.value_head_prefix", str, "score", _D, "name of the critic's value head in its weights"),
]
_TRAIN = [
    _flag(
        "train.batch_size", int, 128, _B, "rows (environment steps) of one optimizer step, at most", bound=AT_LEAST_ONE
    ),
    _flag("train.micro_batch_size", int, 1, _B, "rows of one pass on one worker", bound=AT_LEAST_ONE),
    _flag("train.max_epochs", int, 1, _B, "passes over the rows of an iteration", bound=AT_LEAST_ONE),
    _flag("train.seed", int, 42, _B, "root of every random choice", bound=SEED),
    _flag("train.full_determinism_enable", bool, False, _D, "deterministic kernels in training"),
    _flag("train.dynamic_batch_enable", bool, False, _B, "cut micro-batches by tokens instead of rows"),
    _flag("train.max_tokens_per_gpu", int, 16192, _B, "tokens of one training pass on one GPU", bound=AT_LEAST_ONE),
]
_ROLLOUT = [
    _flag("rollout.batch_size", int, 1024, _B, "tasks (groups) of an iteration", bound=AT_LEAST_ONE),
    _flag("rollout.n_samples_per_prompt", int, 1, _B, "episodes of one task (group size)", bound=AT_LEAST_ONE),
    _flag("rollout.micro_batch_size", int, 1, _B, "rows of one log-probability pass on one worker", bound=AT_LEAST_ONE),
    _flag(
        "rollout.max_tokens_per_gpu", int, None, _B, "tokens of one log-probability pass on one GPU", bound=AT_LEAST_ONE
    ),
    _flag("rollout.max_new_tokens", int, None, _B, "tokens that one action may have", bound=AT_LEAST_ONE),
    _flag("rollout.top_p", float, 1.0, _B, "nucleus sampling threshold in training episodes", bound=SHARE_ABOVE_ZERO),
    _flag("rollout.temperature", float, 1.0, _B, "sampling temperature in training episodes", bound=POSITIVE),
    _flag("data.max_len", int, 2048, _B, "tokens of prompt and response together", bound=AT_LEAST_ONE),
    _flag("data.disable_fast_tokenizer", bool, False, _D, "use the tokenizer's Python version"),
    _flag("eval.steps", int, -1, _B, "iterations between evaluations; -1: none in between", bound=NEVER_OR_EVERY),
    _flag("eval.temperature", float, 0.6, _B, "sampling temperature in evaluation", bound=NOT_NEGATIVE),
    _flag("eval.n_samples_per_prompt", int, 4, _B, "evaluation episodes of one task", bound=AT_LEAST_ONE),
]
_CHECKPOINTS = [
    _flag("ckpt.save_steps", int, -1, _B, "iterations between checkpoints; -1: no checkpoints", bound=NEVER_OR_EVERY),
    _flag("ckpt.path", str, "./ckpt/checkpoints_ppo_ray", _B, "folder of the checkpoints to resume from"),
    _flag("ckpt.output_dir", str, "./ckpt", _B, "folder of the trained model"),
    _flag("ckpt.save_hf", bool, False, _D, "save a loadable model with every checkpoint"),
    _flag("ckpt.disable_ds", bool, False, _D, "save no DeepSpeed state (such a checkpoint cannot be resumed)"),
    _flag("ckpt.max_num", int, 3, _B, "checkpoints kept", bound=AT_LEAST_ONE),
    _flag("ckpt.max_mem", float, float("inf"), _D, "gigabytes of checkpoints kept"),
    _flag("ckpt.load_enable", bool, False, _B, "resume from ckpt.path if it holds a checkpoint"),
    _flag("logger.logging_steps", int, 1, _B, "iterations between log entries", bound=AT_LEAST_ONE),
    _flag("logger.tensorboard_dir", str, None, _B, "folder of TensorBoard logs"),
    _flag(
        "logger.wandb.key",
        str,
        None,
        _B,
        "Weights & Biases key; setting it turns on logging there (any text does with WANDB_MODE=offline)",
        secret=True,
    ),
    _flag("logger.wandb.org", str, None, _B, "Weights & Biases entity"),
    _flag("logger.wandb.group", str, None, _B, "Weights & Biases group"),
    _flag("logger.wandb.project", str, "openrlhf_train_ppo", _B, "Weights & Biases project"),
    _flag("logger.wandb.run_name", str, "ppo_%m%dT%H:%M", _B, "Weights & Biases run name", clock_default=True),
]
_DEEPSPEED = [
    _flag("ds.zero_stage", int, 2, _D, "DeepSpeed ZeRO stage", bound=between(0, 3)),
    _flag("ds.param_dtype", str, "bf16", _B, "number format of the weights", choices=("bf16", "fp16")),
    _flag("ds.attn_implementation", str, "flash_attention_2", _D, "attention kernel, as transformers names it"),
    _flag(
        "ds.experts_implementation",
        str,
        None,
        _D,
        "mixture-of-experts kernel",
        choices=("eager", "batched_mm", "grouped_mm", "deepgemm"),
    ),
    _flag("ds.use_universal_ckpt", bool, False, _D, "DeepSpeed's universal checkpoint format"),
    _flag("ds.deepcompile", bool, False, _D, "DeepSpeed's compiler"),
    _flag("ds.zpg", int, 1, _D, "ZeRO++ partition size", bound=AT_LEAST_ONE),
    _flag("ds.adam_offload", bool, False, _D, "keep the optimizer's state in main memory"),
    _flag("ds.use_liger_kernel", bool, False, _D, "Liger kernels"),
    _flag("ds.grad_accum_dtype", str, None, _D, "number format in which gradients are accumulated"),
    _flag("ds.overlap_comm", bool, False, _D, "overlap gradient communication with the backward pass"),
    _flag("ds.enable_sleep", bool, False, _D, "move the training state off the GPU during rollouts"),
    _flag("ds.tensor_parallel_size", int, 1, _D, "GPUs that split one copy of the policy", bound=AT_LEAST_ONE),
    _flag("ds.packing_samples", bool, False, _D, "pack rows without padding"),
    _flag("ds.ring_attn_size", int, 1, _D, "GPUs that split one sequence", bound=AT_LEAST_ONE),
    _flag("ds.ring_attn_head_stride", int, 1, _D, "heads per ring-attention round", bound=AT_LEAST_ONE),
]
_LORA = [
    _flag("ds.lora.rank", int, 0, _B, "rank of LoRA adapters, which alone are trained; 0: all weights are",
          bound=NOT_NEGATIVE),
    _flag("ds.lora.alpha", int, 16, _B, "an adapter's output is multiplied by this and divided by the rank",
          bound=AT_LEAST_ONE),
    _flag("ds.lora.target_modules", str, "all-linear", _B,
          "names of the layers that get adapters, as the model calls them (q_proj v_proj); all-linear: every linear "
          "layer but the output layer", nargs="*"),
    _flag("ds.lora.dropout", float, 0, _B, "share of an adapter's inputs that is dropped in training",
          bound=SHARE_BELOW_ONE),
]  # fmt: skip
_OPTIM = {"choices": ("adam", "muon")}
_PAIR = {"nargs": 2}
_REFUSED = [
    *_refused("there is no reward model to share GPUs with; remove it", ("train.colocate_critic_reward", bool, False)),
    *_refused(
        "rewards come from the environment alone; remove it, or change them with --env.options or --env.plugin",
        ("reward.num_nodes", int, 1),
        ("reward.num_gpus_per_node", int, 8),
        ("reward.model_name_or_path", str, None),
        ("reward.remote_url", str, None),
        ("reward.offload", bool, False),
        ("reward.normalize_enable", bool, False),
        ("reward.clip_range", float, (-10, 10), _PAIR),
        ("reward.overlong_buffer_len", float, None),
        ("reward.overlong_penalty_factor", float, 1),
        ("reward.stop_properly_penalty_coef", float, None),
    ),
    *_refused(
        "one rollout can be played beside an update; use --train.overlap one_step",
        ("train.async_enable", bool, False),
        ("train.async_queue_size", int, 1),
    ),
    *_refused(
        "every episode of an iteration is played to its end; remove it",
        ("train.partial_rollout_enable", bool, False),
    ),
    *_refused(
        "tasks come from an environment, not a data set; use --env.name and --env.split",
        ("data.prompt_dataset", str, None),
        ("data.prompt_probs", str, None),
        ("data.prompt_split", str, "train"),
        ("data.input_key", str, "input"),
        ("data.label_key", str, None),
        ("data.max_samples", int, int(1e8)),
    ),
    *_refused(
        "evaluation plays an environment split; use --env.eval_split and --eval.tasks",
        ("eval.dataset", str, None),
        ("eval.split", str, "train"),
    ),
    *_refused(
        "prompts follow the environment's own template; use --rollout.chat_template to wrap them or not",
        ("data.input_template", str, None),
        ("data.apply_chat_template", bool, False),
    ),
    *_refused(
        "weights are kept in the number format of --ds.param_dtype; remove it, and use --ds.lora.rank to save memory",
        ("ds.load_in_4bit", bool, False),
    ),
    *_refused(
        "environments are text only; remove it",
        ("data.image_key", str, "images"),
        ("data.max_images_per_prompt", int, 0),
        ("actor.freeze_visual_encoder", bool, False),
    ),
    *_refused(
        "this tool brings its own agent loop; add an environment with --env.plugin",
        ("train.agent_func_path", str, None),
    ),
    *_refused(
        "the KL weight is constant; set it with --algo.kl.init_coef",
        ("algo.kl.target", float, None),
        ("algo.kl.horizon", int, 10000),
    ),
    *_refused(
        "the KL term's own gradient is used; remove it and choose the estimate with --algo.kl.estimator",
        ("algo.kl.unbiased_gradient", bool, False),
    ),
    *_refused("mixture-of-experts balancing is not part of the loss; remove it", ("actor.aux_loss_coef", float, 0)),
    *_refused(
        "no moving average of the policy is kept; remove it",
        ("train.enable_ema", bool, False),
        ("train.ema_beta", float, 0.992),
    ),
    *_refused(
        "checkpoints are kept by age; remove it, evaluations are in eval.jsonl",
        ("ckpt.best_metric_key", str, ""),
    ),
    *_refused("a run is counted in iterations; use --train.num_iterations", ("train.num_episodes", int, 1)),
    *_refused(
        "episodes are not oversampled; bound those in flight with --rollout.concurrency",
        ("rollout.vllm_generate_batch_size", int, None),
    ),
    *_refused("there is no prompt loader; use --env.workers", ("data.dataloader_num_workers", int, 0)),
    *_refused("Ray numbers the workers itself; remove it", ("local_rank", int, -1)),
    *_refused(
        "models are not fetched from ModelScope; download it first and give its folder to --actor.model_name_or_path",
        ("use_ms", bool, False),
    ),
]

CRITIC_FLAGS: tuple[str, ...] = tuple(flag.name for flag in _CRITIC)
"""Flags that have a meaning only with an estimator that needs a critic."""

OPENRLHF_FLAGS: tuple[Flag, ...] = (
    *_PLACEMENT, *_VLLM, *_ALGORITHM, *_POLICY, *_CRITIC, *_TRAIN, *_ROLLOUT, *_CHECKPOINTS, *_DEEPSPEED, *_LORA,
    *_REFUSED,
)  # fmt: skip
