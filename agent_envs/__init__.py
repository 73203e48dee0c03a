"""Multi-turn text environments. Imports nothing beyond the standard library until an environment is asked for."""

from __future__ import annotations

from agent_envs.base import EnvError, PromptTemplate, Reset, StepResult, TextEnv, UnknownTask
from agent_envs.registry import RegistryError, get, load_plugin, make, names, register

__all__ = [
    "EnvError",
    "PromptTemplate",
    "RegistryError",
    "Reset",
    "StepResult",
    "TextEnv",
    "UnknownTask",
    "get",
    "load_plugin",
    "make",
    "names",
    "register",
]
