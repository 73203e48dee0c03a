"""Environments in worker processes, behind an asyncio interface."""

from __future__ import annotations

from agent_envs.workers.pool import EnvPool, PoolStats, Session
from agent_envs.workers.wire import EnvFault

__all__ = ["EnvFault", "EnvPool", "PoolStats", "Session"]
