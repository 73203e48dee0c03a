"""Vault: a small grid of rooms where a gem has to be fetched from a locked chest and put on an altar."""

from __future__ import annotations

from agent_envs.vault.env import VaultEnv

__all__ = ["VaultEnv"]
