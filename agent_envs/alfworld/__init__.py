"""ALFWorld: household tasks in text, played by the stock TextWorld engine, and a generator of small houses."""

from __future__ import annotations

from agent_envs.alfworld.env import AlfworldEnv

__all__ = ["AlfworldEnv"]
