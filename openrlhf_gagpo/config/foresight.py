"""What a dry run says of a configuration: where it would run, with how much memory, and what this machine lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config.checks import settings_problems
from openrlhf_gagpo.config.machine_checks import device_problems, machine_problems
from openrlhf_gagpo.config.memory import Estimate, estimate
from openrlhf_gagpo.config.placement import Plan, place
from openrlhf_gagpo.config.resolve import Config, uses_critic
from openrlhf_gagpo.config.shapes import ModelShape, find_shape
from openrlhf_gagpo.errors import ConfigError

__all__ = ["Foresight", "foresee"]


@dataclass(frozen=True)
class Foresight:
    """What would happen."""

    plan: Plan
    """On the devices that the configuration is for, whether this machine has them or not."""
    memory: Estimate | str
    """Or why there is none, as a sentence."""
    warnings: tuple[str, ...]
    """What is missing on this machine."""


def foresee(config: Config) -> Foresight:
    """Look ahead without reading more than configuration files.

    Raises:
        ConfigError: no machine could run the configuration.
    """
    plan = place(config)
    warnings = []
    if plan.device == "cpu" and not BACKENDS[plan.backend].one_process and any(device_problems(config, plan)):
        # Settings that only GPUs can follow: the recipe is for a machine with them.
        plan = replace(plan, device="cuda")
        warnings.append(
            f"this machine has no GPU, and the settings are for {plan.gpus}; placement and memory are those on GPUs"
        )
    about_devices = set(device_problems(config, plan)) if warnings else set()
    problems = (text for text in machine_problems(config, plan) if text not in about_devices)
    for sentence in settings_problems(config, plan):
        raise ConfigError(sentence)
    return Foresight(plan, _memory(config, plan), (*warnings, *problems))


def _memory(config: Config, plan: Plan) -> Estimate | str:
    names = [config.actor.model_name_or_path]
    if uses_critic(config) and config.critic.model_name_or_path != names[0]:
        names.append(config.critic.model_name_or_path)
    shapes = [find_shape(name) for name in names]
    unknown = next((shape for shape in shapes if isinstance(shape, str)), None)
    return unknown or estimate(config, plan, *_known(shapes))


def _known(shapes: list[ModelShape | str]) -> Iterator[ModelShape]:
    return (shape for shape in shapes if isinstance(shape, ModelShape))
