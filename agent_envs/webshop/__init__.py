"""WebShop: shopping by text in the official or a generated catalogue, without Java, Flask or a second Python."""

from __future__ import annotations

from agent_envs.webshop.env import WebShopEnv

__all__ = ["WebShopEnv"]
