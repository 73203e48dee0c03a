"""The numbers of an evaluation, from its finished samples, and the paired difference to those of another one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from openrlhf_gagpo.errors import EvaluationError
from openrlhf_gagpo.evaluation.prices import Price
from openrlhf_gagpo.evaluation.samples import Sample
from openrlhf_gagpo.rollout.types import Usage
from openrlhf_gagpo.stats import Estimate, mean, mean_interval, paired_test, pass_at_k, wilson_interval

__all__ = ["check_comparable", "differences", "numbers"]

_PAIRED = ("success", "score", "length")
"""Measures of a task that are compared with those of another evaluation."""
_SAME = ("environment", "environment_sha256", "split")
"""Settings in which two evaluations have to agree to be compared task by task."""


def numbers(samples: Sequence[Sample], price: Price | None = None) -> dict[str, Any]:
    """Return the numbers of ``result.json``.

    Samples that a failure of environment or policy ended are counted and left out of all but usage and cost. Intervals
    are 95 % intervals over tasks, because samples of one task are not independent: Wilson's with one (mean) outcome per
    task for shares, Student's t for other means.
    """
    sound = [sample for sample in samples if not sample.episode.faulted]
    usage = reduce(add, (sample.usage for sample in samples), Usage())
    steps = [step for sample in sound for trial in sample.trials for step in trial.steps]
    tasks = _by_task(sound)
    found: dict[str, Any] = {
        **_measures(tasks),
        "samples": len(sound),
        "faulted": {
            "environment": sum(sample.episode.end_reason == "env_fault" for sample in samples),
            "policy": sum(sample.episode.end_reason == "policy_fault" for sample in samples),
        },
        "pass_at": {str(k): _share(chances) for k, chances in _chances(tasks).items()},
        "success_by_trial": _by_trial(sound),
        "format_invalid_share": _finite(mean(not step.format_valid for step in steps)),
        "inadmissible_share": _finite(mean(not step.admissible for step in steps)),
        "length_capped_share": _finite(mean(step.finish_reason == "length" for step in steps)),
        "truncated_share": _finite(mean(sample.episode.end_reason == "truncated" for sample in sound)),
        "prompts_too_long": sum(sample.episode.end_reason == "prompt_too_long" for sample in sound),
        "requests": usage.requests,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "sample_seconds": _finite(mean(sample.seconds for sample in samples)),
        "cost": None if price is None else {"currency": price.currency, "total": price.of(usage)},
        "categories": {
            name: _measures(_by_task([sample for sample in sound if sample.episode.category == name]))
            for name in sorted({sample.episode.category for sample in sound} - {""})
        },
        "by_task": {
            task: {
                "samples": len(played),
                "successes": sum(sample.episode.success for sample in played),
                **{measure: mean(values) for measure, values in _values(played).items()},
            }
            for task, played in tasks.items()
        },
    }
    return found


def check_comparable(settings: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise ``EvaluationError`` unless two evaluations play the same split of the same environment and data."""
    for name in _SAME:
        if settings.get(name) != other.get(name):
            raise EvaluationError(
                f"the evaluations cannot be compared task by task: {name} is {settings.get(name)!r} in one and "
                f"{other.get(name)!r} in the other; evaluate both on the same tasks"
            )


def differences(
    settings: Mapping[str, Any], result: Mapping[str, Any], other_settings: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the paired differences of two results over the tasks that both played: the first minus the second.

    Returns:
        ``tasks``, their number; per measure ``mean``, ``low``, ``high`` (95 % t interval) and ``p_value`` of a paired t
        test over tasks; and ``settings``, the names of the settings in which the two differ.

    Raises:
        EvaluationError: they are of different environments, data or splits, or have no task in common.
    """
    check_comparable(settings, other_settings)
    first, second = result["by_task"], other["by_task"]
    common = [task for task in first if task in second]
    if not common:
        raise EvaluationError("the evaluations have no task in common; evaluate both on the same tasks")
    found: dict[str, Any] = {
        "tasks": len(common),
        "settings": sorted(
            name for name in settings.keys() | other_settings.keys() if settings.get(name) != other_settings.get(name)
        ),
    }
    for measure in _PAIRED:
        test = paired_test([first[task][measure] for task in common], [second[task][measure] for task in common])
        found[measure] = {**_estimate(test.difference), "p_value": _finite(test.p_value)}
    return found


def _by_task(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    tasks: dict[str, list[Sample]] = {}
    for sample in samples:
        tasks.setdefault(sample.episode.task, []).append(sample)
    return tasks


def _values(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Return the measures of one task's samples; the length is that of all trials together."""
    return {
        "success": [float(sample.episode.success) for sample in samples],
        "score": [sample.episode.score for sample in samples],
        "return": [sample.episode.episode_return for sample in samples],
        "length": [float(sum(len(trial.steps) for trial in sample.trials)) for sample in samples],
    }


def _measures(tasks: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """Return each measure's mean over tasks with its interval."""
    by_task = [_values(samples) for samples in tasks.values()]
    found: dict[str, Any] = {"tasks": len(tasks)}
    for measure in ("success", "score", "return", "length"):
        means = [mean(values[measure]) for values in by_task]
        found[measure] = _share(means) if measure == "success" else _estimate(mean_interval(means))
    return found


def _chances(tasks: Mapping[str, Sequence[Sample]]) -> dict[int, list[float]]:
    """Return k -> pass@k of every task with at least k samples, for 1, 2, 4... and the largest number of samples."""
    most = max((len(samples) for samples in tasks.values()), default=0)
    sizes = sorted({2**power for power in range(most.bit_length())} | {most}) if most else []
    return {
        k: [
            pass_at_k(len(samples), sum(sample.episode.success for sample in samples), k)
            for samples in tasks.values()
            if len(samples) >= k
        ]
        for k in sizes
        if k <= most
    }


def _by_trial(samples: Sequence[Sample]) -> list[float]:
    """Return the share of samples that succeeded within the first 1, 2... trials; empty if there was only one."""
    most = max((len(sample.trials) for sample in samples), default=1)
    if most == 1:
        return []
    return [
        mean(any(trial.success for trial in sample.trials[:count]) for sample in samples)
        for count in range(1, most + 1)
    ]


def _share(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of one share per task with Wilson's interval."""
    centre = mean(values)
    low, high = wilson_interval(round(centre * len(values)), len(values)) if values else (0.0, 1.0)
    return {"mean": _finite(centre), "low": low, "high": high}


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    return {"mean": _finite(estimate.mean), "low": _finite(estimate.low), "high": _finite(estimate.high)}


def _finite(value: float) -> float | None:
    # JSON has no NaN.
    return value if math.isfinite(value) else None
