"""What several modules read from a configuration, and how they speak of it."""

from __future__ import annotations

from typing import Any

from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config.resolve import COMMAND_LINE, DEFAULT, DERIVED, Config

__all__ = ["GAIN", "about_environment", "correction_range", "env_options", "overlaps", "say"]

GAIN = "ig"
"""Model column that the training loop computes from the log-probabilities of golden answers, with any backend."""


def env_options(config: Config) -> dict[str, Any]:
    """Return the options of the environment: ``env.options``, and ``max_steps`` if ``env.max_steps`` is set."""
    limit = {} if config.env.max_steps is None else {"max_steps": config.env.max_steps}
    return {**config.env.options, **limit}


def correction_range(config: Config) -> tuple[float, float]:
    """Return the allowed range of the sampler correction's statistic; a single threshold is its upper end."""
    *low, high = config.algo.advantage.is_correction_threshold
    return (low[0] if low else 0.0, high)


def overlaps(config: Config) -> bool:
    """Return whether rollouts are played beside updates; one process, whose value may be a recipe's, cannot do both."""
    return bool(config.train.overlap == "one_step") and not BACKENDS[config.backend].one_process


def about_environment(config: Config, error: Exception) -> str:
    where = say(config, "env.options") if config.env.options else f"env.name {config.env.name}"
    return f"{where}: {str(error).rstrip('.')}"


def say(config: Config, name: str) -> str:
    """Return ``name`` with the place where it was set."""
    origin = config.origin(name)
    if origin == COMMAND_LINE:
        return f"--{name}"
    return name if origin in (DEFAULT, DERIVED) else f"{name} ({origin})"
