"""ALFWorld: household tasks in text, played on the TextWorld engine, and a generator of houses."""

from __future__ import annotations

from agent_envs.alfworld.env import AlfworldEnv

__all__ = ["AlfworldEnv"]
