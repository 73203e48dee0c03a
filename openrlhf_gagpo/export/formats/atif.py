"""The Agent Trajectory Interchange Format of Harbor (RFC 0001, version 1.7): a folder with one file per episode."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_gagpo import __version__
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.export.registry import register
from openrlhf_gagpo.rollout.types import Step

if TYPE_CHECKING:
    from openrlhf_gagpo.export.recording import Origin, Recorded, Recording

__all__ = ["write_trajectories"]

_VERSION = "ATIF-v1.7"
_AGENT = "openrlhf-gagpo"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@register("atif", "trajectories of Harbor (ATIF), a file for every episode", suffix="")
def write_trajectories(recording: Recording, path: Path) -> str:
    """Write one file per episode: what the environment said first, then a step of the agent for each response.

    Token ids and log-probabilities are metrics of a step; its action, reward and credit are under ``extra``.

    Raises:
        ConfigError: ``path`` is a file, or a folder that holds something.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        taken = any(path.iterdir())
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}; name another folder") from error
    if taken:
        raise ConfigError(f"--out {path} holds other files; name a new folder")
    for number, item in enumerate(recording.episodes, start=1):
        where = f"i{item.iteration:05d}-" if item.iteration is not None else ""
        name = f"{where}{number:05d}-{_UNSAFE.sub('-', item.episode.trajectory)}"
        text = json.dumps(_trajectory(recording.origin, item, name))
        (path / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return f"{len(recording.episodes)} trajectories"


def _trajectory(origin: Origin, item: Recorded, name: str) -> dict[str, object]:
    from openrlhf_gagpo.export.recording import opening

    episode = item.episode
    after = [*(step.observation for step in episode.steps[1:]), item.played.final_observation]
    start: dict[str, object] = {"step_id": 1, "source": "user", "message": opening(episode)}
    turns = [
        _turn(number, step, credit, observed)
        for number, (step, credit, observed) in enumerate(
            zip(episode.steps, item.played.credit, after[: len(episode.steps)], strict=True), start=2
        )
    ]
    agent = {
        "name": origin.agent or _AGENT,
        "version": origin.packages.get(_AGENT, __version__),
        **({"model_name": origin.model} if origin.model else {}),
    }
    return {
        "schema_version": _VERSION,
        "session_id": origin.title,
        "trajectory_id": name,
        "agent": agent,
        "steps": [start, *turns],
        "final_metrics": {
            **_spent(item),
            "total_steps": 1 + len(turns),
            "extra": {"success": episode.success, "score": episode.score, "return": episode.episode_return},
        },
        "extra": {
            "environment": origin.environment,
            "split": origin.split,
            "iteration": item.iteration,
            "task": episode.task,
            "category": episode.category,
            "group": episode.group,
            "traj": episode.trajectory,
            "env_seed": episode.env_seed,
            "end_reason": episode.end_reason,
            "error": episode.error,
            "info": episode.info,
        },
    }


def _turn(number: int, step: Step, credit: Mapping[str, float], observed: str) -> dict[str, object]:
    turn: dict[str, object] = {
        "step_id": number,
        "source": "agent",
        "message": step.response,
        # The action is text, not a call of a tool, so that the result names none.
        "observation": {"results": [{"content": observed}]},
        "llm_call_count": 1,
        "extra": {
            "step": step.index,
            "action": step.action,
            "state": step.state_key,
            "next_state": step.next_state_key,
            "reward": step.reward,
            "terminated": step.terminated,
            "truncated": step.truncated,
            "format_valid": step.format_valid,
            "admissible": step.admissible,
            "info": step.info,
            "credit": dict(credit),
        },
    }
    if step.response_ids:
        turn["metrics"] = {
            "prompt_tokens": len(step.prompt_ids),
            "completion_tokens": len(step.response_ids),
            "prompt_token_ids": step.prompt_ids,
            "completion_token_ids": step.response_ids,
            "logprobs": step.sampling_log_probs,
        }
    return turn


def _spent(item: Recorded) -> dict[str, int]:
    if item.usage is None:
        steps = item.episode.steps
        return {
            "total_prompt_tokens": sum(len(step.prompt_ids) for step in steps),
            "total_completion_tokens": sum(len(step.response_ids) for step in steps),
        }
    return {
        "total_prompt_tokens": item.usage.prompt_tokens,
        "total_completion_tokens": item.usage.completion_tokens,
        "total_cached_tokens": item.usage.cached_tokens,
    }
