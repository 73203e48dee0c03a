"""Typed settings of rollout, training and backends, built from the resolved configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from openrlhf_gagpo.config.adapters import adapted_names
from openrlhf_gagpo.config.families import families
from openrlhf_gagpo.config.placement import place
from openrlhf_gagpo.config.reading import correction_range, env_options, overlaps
from openrlhf_gagpo.config.resolve import Config, uses_critic
from openrlhf_gagpo.config.shapes import has_dropout
from openrlhf_gagpo.credit import registry as estimators
from openrlhf_gagpo.credit.gains import GainOptions
from openrlhf_gagpo.evaluation import EvaluationPlan, spread
from openrlhf_gagpo.machine import GIB
from openrlhf_gagpo.rollout.answers import Golden
from openrlhf_gagpo.rollout.filtering import GroupFilter
from openrlhf_gagpo.rollout.player import RolloutSettings
from openrlhf_gagpo.rollout.types import SamplingParams
from openrlhf_gagpo.training.corrections import SamplerCorrection
from openrlhf_gagpo.training.settings import (
    BackendSettings,
    BatchSettings,
    CheckpointSettings,
    CriticSettings,
    LoopSettings,
    LoraSettings,
    ObjectiveSettings,
    OptimizerSettings,
    TrackerSettings,
    WandbSettings,
)
from openrlhf_gagpo.training.table import IG

__all__ = [
    "absolute",
    "backend_settings",
    "group_filter",
    "loop_settings",
    "objective_settings",
    "rollout_settings",
    "sampling",
]


def absolute(plugins: Sequence[str]) -> tuple[str, ...]:
    """Return plugin files by their full path, as worker processes in another folder need; modules are unchanged."""
    return tuple(str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in plugins)


def rollout_settings(config: Config) -> RolloutSettings:
    """Return the settings of how all episodes of this run are played."""
    env, rollout = config.env, config.rollout
    return RolloutSettings(
        env_name=env.name,
        env_options=env_options(config),
        plugins=absolute(env.plugin),
        workers=env.workers,
        placement=env.placement,
        reset_timeout=env.reset_timeout,
        step_timeout=env.step_timeout,
        concurrency=rollout.concurrency,
        history_length=rollout.history_length,
        think=rollout.think,
        action_tags=rollout.action_tags,
        list_actions=rollout.list_actions,
        chat_template=rollout.chat_template,
        max_prompt_tokens=config.data.max_len - rollout.max_new_tokens,
        context=rollout.context,
        transcript_overflow=rollout.transcript_overflow,
        golden_answers=_golden_answers(config),
    )


def _golden_answers(config: Config) -> Golden:
    """Return which golden answers the estimator's information gain is about."""
    if IG not in estimators.get(config.algo.advantage.estimator).needs:
        return "none"
    options = config.options(families()[0])
    return "all" if isinstance(options, GainOptions) and options.ig_answers == "max" else "first"


def sampling(config: Config, *, evaluation: bool = False) -> SamplingParams:
    """Return the sampling parameters of training or evaluation."""
    return SamplingParams(
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.eval.temperature if evaluation else config.rollout.temperature,
        top_p=config.rollout.top_p,
    )


def objective_settings(config: Config) -> ObjectiveSettings:
    """Return the settings of the objective."""
    options = config.options(families()[1])
    return ObjectiveSettings(
        policy_loss=config.actor.policy_loss_type,
        options={item.name: getattr(options, item.name) for item in fields(options)},
        kl_coef=config.algo.kl.init_coef,
        kl_estimator=config.algo.kl.estimator,
        entropy_coef=config.actor.entropy_coef,
        response_limit=config.rollout.max_new_tokens,
        correction=_correction(config),
        plugins=absolute(config.algo.plugin),
    )


def _optimizer(section: Any, max_bad_steps: int) -> OptimizerSettings:
    """Return the optimizer of the policy or of the critic, whose flags have the same names."""
    return OptimizerSettings(
        lr=section.adam.lr,
        betas=(section.adam.betas[0], section.adam.betas[1]),
        eps=section.adam.eps,
        weight_decay=section.adam.weight_decay,
        scheduler=section.lr_scheduler,
        warmup_ratio=section.lr_warmup_ratio,
        min_lr_ratio=section.min_lr_ratio,
        max_norm=section.max_norm,
        max_bad_steps=max_bad_steps,
    )


def _critic(config: Config) -> CriticSettings:
    critic = config.critic
    return CriticSettings(
        model=critic.model_name_or_path,
        new_head=critic.model_name_or_path == config.actor.model_name_or_path,
        optimizer=_optimizer(critic, config.train.max_bad_steps),
        value_clip=critic.value_clip,
        gradient_checkpointing=config.actor.gradient_checkpointing_enable,
        export=critic.save_value_network,
    )


def _lora(config: Config) -> LoraSettings | None:
    lora = config.ds.lora
    return LoraSettings(lora.rank, lora.alpha, lora.dropout, adapted_names(config)) if lora.rank else None


def _correction(config: Config) -> SamplerCorrection | None:
    chosen = config.algo.advantage
    if chosen.is_correction_level == "off":
        return None
    return SamplerCorrection(
        level=chosen.is_correction_level,
        mode=chosen.is_correction_mode,
        gating=chosen.is_correction_gating,
        threshold=correction_range(config),
    )


def group_filter(config: Config) -> GroupFilter | None:
    """Return which groups a run trains on; None if it does not filter them."""
    algo = config.algo
    if not algo.dynamic_filtering_enable:
        return None
    low, high = algo.dynamic_filtering_range
    return GroupFilter(algo.dynamic_filtering_rule, (low, high), algo.dynamic_filtering_max_rounds)


def backend_settings(config: Config) -> BackendSettings:
    """Return the settings of the backend."""
    actor, train, rollout = config.actor, config.train, config.rollout
    by_tokens = train.dynamic_batch_enable
    return BackendSettings(
        model=actor.model_name_or_path,
        use_fast_tokenizer=not config.data.disable_fast_tokenizer,
        param_dtype=config.ds.param_dtype,
        gradient_checkpointing=actor.gradient_checkpointing_enable,
        seed=train.seed,
        iterations=train.num_iterations,
        temperature=rollout.temperature,
        rollout=rollout_settings(config),
        batches=BatchSettings(
            rows_per_step=train.batch_size,
            micro_batch=None if by_tokens else train.micro_batch_size,
            micro_tokens=train.max_tokens_per_gpu if by_tokens else None,
            forward_micro_batch=None if rollout.max_tokens_per_gpu else rollout.micro_batch_size,
            forward_micro_tokens=rollout.max_tokens_per_gpu,
            epochs=train.max_epochs,
            equal_rows_once=not (config.ds.lora.dropout or has_dropout(actor.model_name_or_path)),
        ),
        objective=objective_settings(config),
        optimizer=_optimizer(actor, train.max_bad_steps),
        lora=_lora(config),
        critic=_critic(config) if uses_critic(config) else None,
        checkpoints=CheckpointSettings(
            Path(config.ckpt.path), Path(config.ckpt.output_dir), config.ckpt.max_num, config.ckpt.max_mem * GIB
        ),
        trackers=_trackers(config),
        logit_chunk=train.logit_chunk,
        gpus=place(config).gpus,
        stall_timeout=rollout.stall_timeout,
        worker_timeout=train.worker_timeout,
        device=train.device,
        threads=train.threads,
    )


def _trackers(config: Config) -> TrackerSettings:
    chosen, account = config.logger, config.logger.wandb
    return TrackerSettings(
        every=chosen.logging_steps,
        tensorboard=Path(chosen.tensorboard_dir) / account.run_name if chosen.tensorboard_dir else None,
        wandb=WandbSettings(
            key=account.key,
            entity=account.org,
            group=account.group,
            project=account.project,
            name=account.run_name,
            config=config.to_dict()["values"],
        )
        if account.key
        else None,
    )


def loop_settings(
    config: Config, train_tasks: Sequence[str], eval_tasks: Sequence[str], unknown_token: int | None = None
) -> LoopSettings:
    """Return the settings of the iteration loop.

    Args:
        eval_tasks: tasks that every evaluation plays.
        unknown_token: id that the tokenizer gives to what it does not know, if it has one.
    """
    evaluation = EvaluationPlan(
        split=config.env.eval_split,
        tasks=eval_tasks,
        samples=config.eval.n_samples_per_prompt,
        sampling=sampling(config, evaluation=True),
        seed=config.train.seed,
    )
    between = config.eval.tasks_between
    return LoopSettings(
        environment=config.env.name,
        seed=config.train.seed,
        iterations=config.train.num_iterations,
        tasks_per_iteration=config.rollout.batch_size,
        group_size=config.rollout.n_samples_per_prompt,
        sampling=sampling(config),
        estimator=config.algo.advantage.estimator,
        estimator_options=config.options(families()[0]),
        objective=objective_settings(config),
        train_tasks=train_tasks,
        group_filter=group_filter(config),
        evaluation=evaluation if eval_tasks else None,
        evaluation_between=replace(evaluation, tasks=spread(eval_tasks, between)) if between else None,
        greedy=config.eval.greedy,
        evaluate_every=config.eval.steps if eval_tasks and config.eval.steps > 0 else None,
        evaluate_before=config.eval.before_train,
        evaluate_after=config.eval.after_train,
        save_every=config.ckpt.save_steps if config.ckpt.save_steps > 0 else None,
        critic_warmup=max(config.critic.freezing_steps, 0),
        overlap=overlaps(config),
        record=config.rollout.record == "all",
        unknown_token=unknown_token,
    )
