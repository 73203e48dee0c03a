"""Agents that ``gagpo eval`` plays with: one file each, with one registered class and its declared options.

Importing this package registers every agent in it.
"""

from __future__ import annotations

import importlib
import pkgutil

from openrlhf_gagpo.agents.registry import Agent, AgentEntry, AgentOptions, get, names, register

__all__ = ["Agent", "AgentEntry", "AgentOptions", "get", "names", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
