"""The log of an evaluation in the format of Inspect (UK AI Security Institute), version 2, as one JSON file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_gagpo.export.registry import register
from openrlhf_gagpo.rollout.types import Episode, Step, Usage
from openrlhf_gagpo.stats import mean

if TYPE_CHECKING:
    from openrlhf_gagpo.export.recording import Origin, Recorded, Recording

__all__ = ["write_log"]

_VERSION = 2
_SCORES: Mapping[str, Callable[[Episode], float]] = {
    "success": lambda episode: float(episode.success),
    "score": lambda episode: episode.score,
    "return": lambda episode: episode.episode_return,
}
_STOPPED = {"stop": "stop", "length": "max_tokens"}
_UNKNOWN = "unknown"


@register("inspect", "log of Inspect, with a sample for every episode", suffix=".json", dated=True)
def write_log(recording: Recording, path: Path) -> str:
    """Write one sample per episode: what environment and policy said in turn, scores, and credit as metadata."""
    from openrlhf_gagpo.comparison.output import writing

    origin, epochs = recording.origin, Counter[str]()
    samples = []
    for item in recording.episodes:
        epochs[item.episode.task] += 1
        samples.append(_sample(origin, item, epochs[item.episode.task]))
    log = {
        "version": _VERSION,
        "status": "success",
        "eval": _spec(origin, list(epochs), max(epochs.values(), default=1)),
        "plan": {"name": "plan", "steps": [{"solver": origin.agent or origin.title, "params": {}}]},
        "results": _results([item.episode for item in recording.episodes]),
        "stats": {
            "started_at": origin.started,
            "completed_at": origin.ended or origin.started,
            "model_usage": _by_model(origin, reduce(add, (_usage(item) for item in recording.episodes), Usage())),
        },
        "samples": samples,
    }
    with writing(path, "--out") as file:
        json.dump(log, file)
        file.write("\n")
    return f"{len(samples)} samples"


def _spec(origin: Origin, tasks: Sequence[str], epochs: int) -> dict[str, object]:
    name = origin.environment or origin.title
    identity = hashlib.sha256(f"{origin.title} {origin.started}".encode()).hexdigest()[:22]
    return {
        "eval_id": identity,
        "run_id": identity,
        "task_id": identity,
        "created": origin.started,
        "task": name,
        "solver": origin.agent or None,
        "dataset": {"name": origin.split or name, "samples": len(tasks), "sample_ids": list(tasks)},
        "model": origin.model or _UNKNOWN,
        "config": {"epochs": epochs},
        "scorers": [{"name": name, "metrics": [{"name": "mean"}]} for name in _SCORES],
        "packages": dict(origin.packages),
        "metadata": {"commit": origin.commit, "settings": dict(origin.settings)},
    }


def _results(episodes: Sequence[Episode]) -> dict[str, object]:
    sound = [episode for episode in episodes if not episode.faulted]
    scores = [
        {
            "name": name,
            "scorer": name,
            "scored_samples": len(sound),
            "unscored_samples": len(episodes) - len(sound),
            "metrics": {"mean": {"name": "mean", "value": mean(map(score, sound))}} if sound else {},
        }
        for name, score in _SCORES.items()
    ]
    return {"total_samples": len(episodes), "completed_samples": len(sound), "scores": scores}


def _sample(origin: Origin, item: Recorded, epoch: int) -> dict[str, object]:
    from openrlhf_gagpo.export.recording import opening

    episode = item.episode
    sample: dict[str, object] = {
        "id": episode.task,
        "epoch": epoch,
        "input": opening(episode),
        "target": "",
        "messages": _messages(item, opening(episode)),
        "output": _output(origin, episode),
        "scores": {name: {"value": score(episode)} for name, score in _SCORES.items()} if not episode.faulted else {},
        "metadata": {
            "iteration": item.iteration,
            "group": episode.group,
            "traj": episode.trajectory,
            "category": episode.category,
            "env_seed": episode.env_seed,
            "end_reason": episode.end_reason,
            "info": episode.info,
        },
        "model_usage": _by_model(origin, _usage(item)),
        "total_time": episode.generation_s + episode.environment_s,
        "working_time": episode.generation_s + episode.environment_s,
        "uuid": _name(item),
        "turn_count": len(episode.steps),
    }
    if episode.faulted:
        sample["error"] = {"message": episode.error, "traceback": "", "traceback_ansi": ""}
    if episode.end_reason == "truncated":
        sample["limit"] = {"type": "custom", "limit": len(episode.steps), "reason": "step limit of the environment"}
    return sample


def _messages(item: Recorded, start: str) -> list[dict[str, object]]:
    episode = item.episode
    said = [start, *(step.observation for step in episode.steps[1:]), item.played.final_observation]
    messages: list[dict[str, object]] = []

    def add_message(role: str, content: str, **more: object) -> None:
        messages.append({"id": f"{_name(item)}-{len(messages)}", "role": role, "content": content, **more})

    add_message("user", said[0], source="input")
    for step, credit, after in zip(episode.steps, item.played.credit, said[1:], strict=True):
        add_message("assistant", step.response, source="generate", metadata=_facts(step, credit))
        if after:
            add_message("user", after)
    return messages


def _facts(step: Step, credit: Mapping[str, float]) -> dict[str, object]:
    return {
        "action": step.action,
        "state": step.state_key,
        "reward": step.reward,
        "format_valid": step.format_valid,
        "admissible": step.admissible,
        "info": step.info,
        "credit": dict(credit),
    }


def _output(origin: Origin, episode: Episode) -> dict[str, object]:
    model = origin.model or _UNKNOWN
    if not episode.steps:
        return {"model": model}
    last = episode.steps[-1]
    message = {"role": "assistant", "content": last.response, "source": "generate"}
    choice = {"message": message, "stop_reason": _STOPPED.get(last.finish_reason, _UNKNOWN)}
    return {"model": model, "choices": [choice], "completion": last.response}


def _usage(item: Recorded) -> Usage:
    """Return what an episode cost; from its tokens, where nothing else is recorded."""
    steps = item.episode.steps
    counted = (Usage(1, len(step.prompt_ids), len(step.response_ids)) for step in steps)
    return item.usage or reduce(add, counted, Usage())


def _by_model(origin: Origin, usage: Usage) -> dict[str, object]:
    numbers = {
        # Inspect counts cached tokens apart.
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "input_tokens_cache_read": usage.cached_tokens,
    }
    return {origin.model or _UNKNOWN: numbers}


def _name(item: Recorded) -> str:
    return item.episode.trajectory if item.iteration is None else f"{item.iteration}-{item.episode.trajectory}"
