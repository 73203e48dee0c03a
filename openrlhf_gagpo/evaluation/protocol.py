"""The protocol of an evaluation: everything that its result depends on, in JSON types."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from agent_envs.base import TextEnv
from openrlhf_gagpo.evaluation.harness import EvaluationPlan
from openrlhf_gagpo.evaluation.requests import spread
from openrlhf_gagpo.rollout.player import RolloutSettings
from openrlhf_gagpo.rollout.prompt import ResolvedPrompt
from openrlhf_gagpo.seeds import stable_seed

__all__ = ["environment_facts", "settings_of"]

_LOOKED_AT = 8
"""Tasks, spread over the split, whose starts are part of the hash of an environment's data."""


def environment_facts(env: TextEnv, settings: RolloutSettings, plan: EvaluationPlan) -> dict[str, object]:
    """Return name, options and data of the environment, with a hash over all of it.

    The hash covers the options, what the environment records of its data, the ids of the played tasks in their order,
    and the starts of a few of them.
    """
    record = {name: env.record[name] for name in env.record}
    starts = []
    for task in spread(plan.tasks, _LOOKED_AT):
        start = env.reset(task, stable_seed("eval", task, 0))
        starts.append([start.task, start.observation, start.state_key, list(start.admissible_actions)])
    options = dict(settings.env_options)
    return {
        "environment": settings.env_name,
        "environment_options": options,
        "environment_data": record,
        "environment_sha256": _digest([settings.env_name, options, record, list(plan.tasks), starts]),
    }


def settings_of(
    environment: Mapping[str, object],
    settings: RolloutSettings,
    plan: EvaluationPlan,
    prompt: ResolvedPrompt,
    player: Mapping[str, object],
) -> dict[str, object]:
    """Return the settings that determine the episodes of an evaluation.

    Args:
        environment: the result of ``environment_facts``.
        player: names and options of policy and agent, and what identifies the policy.
    """
    return {
        **environment,
        "split": plan.split,
        "tasks": len(plan.tasks),
        "tasks_sha256": _digest(list(plan.tasks)),
        "samples": plan.samples,
        "seed": plan.seed,
        **{name: value for name, value in asdict(plan.sampling).items() if name not in ("seed", "stop")},
        "max_prompt_tokens": settings.max_prompt_tokens,
        "history_length": settings.history_length,
        "think": settings.think,
        "action_tags": settings.action_tags,
        "list_actions": settings.list_actions,
        "chat_template": settings.chat_template,
        "prompt_sha256": prompt.sha256,
        **player,
    }


def _digest(content: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
