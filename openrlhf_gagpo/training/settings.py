"""From the resolved configuration to what rollout and training are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from openrlhf_gagpo.config.checks import env_options
from openrlhf_gagpo.rollout.player import RolloutSettings
from openrlhf_gagpo.rollout.types import SamplingParams, Step
from openrlhf_gagpo.training.losses import LossOptions
from openrlhf_gagpo.training.rows import OptimizerStep, TrainingRow, plan_updates, unique_rows

__all__ = ["invalid_weight", "loss_options", "plan_forward", "plan_training", "rollout_settings", "sampling"]


def rollout_settings(config: Any, engines: int = 1) -> RolloutSettings:
    """How each of ``engines`` players plays its part of the episodes in this run."""
    return RolloutSettings(
        env_name=config.env.name,
        env_options=env_options(config),
        plugins=tuple(config.env.plugin),
        workers=config.env.workers,
        reset_timeout=config.env.reset_timeout,
        step_timeout=config.env.step_timeout,
        concurrency=-(-config.rollout.concurrency // engines),
        history_length=config.rollout.history_length,
        think=config.rollout.think,
        action_tags=config.rollout.action_tags,
        list_actions=config.rollout.list_actions,
        chat_template=config.rollout.chat_template,
        max_prompt_tokens=config.data.max_len - config.rollout.max_new_tokens,
    )


def sampling(config: Any, *, evaluation: bool = False) -> SamplingParams:
    """How turns are sampled, in training or evaluation."""
    return SamplingParams(
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.eval.temperature if evaluation else config.rollout.temperature,
        top_p=config.rollout.top_p,
    )


def invalid_weight(config: Any) -> str | Callable[[Step], float]:
    """How ``StepBatch.from_episodes`` is to weigh invalid steps: a rule's name, or shares of ``invalid_penalty``."""
    algo = config.algo.advantage
    if algo.inadmissible_penalty is None:
        return algo.invalid_rule
    inadmissible = algo.inadmissible_penalty / algo.invalid_penalty

    def share(step: Step) -> float:
        if not step.format_valid:
            return 1.0
        return 0.0 if step.admissible else inadmissible

    return share


def loss_options(args: Any) -> LossOptions:
    """Loss options from OpenRLHF's flags (``args`` is a configuration or OpenRLHF's own namespace)."""
    low, high = args.actor.eps_clip_low_high or (args.actor.eps_clip, args.actor.eps_clip)
    return LossOptions(
        ratio="action" if args.actor.policy_loss_type == "gspo" else "token",
        aggregate=args.actor.loss_agg_mode,
        clip_low=low,
        clip_high=high,
        dual_clip=args.actor.dual_clip,
        kl_coef=args.algo.kl.init_coef,
        kl_estimator=args.algo.kl.estimator,
        entropy_coef=args.actor.entropy_coef or 0.0,
    )


def plan_forward(rows: Sequence[TrainingRow], args: Any, ranks: int = 1) -> list[OptimizerStep]:
    """Passes that compute every row's log-probabilities once (one "step" over all rows; none without rows)."""
    by_tokens = args.rollout.max_tokens_per_gpu
    return plan_updates(
        [row.length for row in rows],
        [len(row.response_ids) for row in rows],
        mini_batch=max(len(rows), 1),
        micro_batch=None if by_tokens else args.rollout.micro_batch_size,
        max_tokens=by_tokens,
        ranks=ranks,
    )


def plan_training(rows: Sequence[TrainingRow], args: Any, ranks: int, seed: int) -> list[OptimizerStep]:
    """The optimizer steps of one iteration."""
    by_tokens = args.train.dynamic_batch_enable
    return plan_updates(
        [row.length for row in rows],
        [len(row.response_ids) for row in rows],
        mini_batch=args.train.batch_size,
        micro_batch=None if by_tokens else args.train.micro_batch_size,
        max_tokens=args.train.max_tokens_per_gpu if by_tokens else None,
        ranks=ranks,
        epochs=args.train.max_epochs,
        seed=seed,
        equal=unique_rows(rows)[1],
    )
