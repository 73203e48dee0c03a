"""From the resolved configuration to what rollout and training are told."""

from __future__ import annotations

from typing import Any

from openrlhf_gagpo.config.checks import env_options
from openrlhf_gagpo.rollout.player import RolloutSettings
from openrlhf_gagpo.rollout.types import SamplingParams
from openrlhf_gagpo.training.losses import LossOptions

__all__ = ["loss_options", "rollout_settings", "sampling"]


def rollout_settings(config: Any) -> RolloutSettings:
    """How episodes are played in this run."""
    return RolloutSettings(
        env_name=config.env.name,
        env_options=env_options(config),
        plugins=tuple(config.env.plugin),
        workers=config.env.workers,
        reset_timeout=config.env.reset_timeout,
        step_timeout=config.env.step_timeout,
        concurrency=config.rollout.concurrency,
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
