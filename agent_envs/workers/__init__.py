"""Environments in worker processes, behind an asyncio interface."""

from __future__ import annotations

from agent_envs.errors import EnvFault, ServerLost
from agent_envs.workers.pool import RESET_TIMEOUT_S, STEP_TIMEOUT_S, EnvPool, PoolStats, Session

__all__ = ["RESET_TIMEOUT_S", "STEP_TIMEOUT_S", "EnvFault", "EnvPool", "PoolStats", "ServerLost", "Session"]
