"""Multi-turn text environments. Imports only the standard library until an environment is used."""

from __future__ import annotations

from agent_envs.base import ExactModel, Move, NumberedTasks, PromptTemplate, Recording, Reset, StepResult, TextEnv, View
from agent_envs.declarations import Generator, GeneratorOption, Needs, Service
from agent_envs.errors import EnvError, EnvFault, RegistryError, ServerLost, UnknownTask
from agent_envs.registry import get, load_plugin, make, names, register

__all__ = [
    "EnvError",
    "EnvFault",
    "ExactModel",
    "Generator",
    "GeneratorOption",
    "Needs",
    "Move",
    "NumberedTasks",
    "PromptTemplate",
    "Recording",
    "RegistryError",
    "Reset",
    "ServerLost",
    "Service",
    "StepResult",
    "TextEnv",
    "UnknownTask",
    "View",
    "get",
    "load_plugin",
    "make",
    "names",
    "register",
]
