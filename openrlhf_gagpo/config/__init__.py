"""Flags, recipes, their precedence, and what can be checked before a run starts."""

from __future__ import annotations

from openrlhf_gagpo.errors import ConfigError

__all__ = ["ConfigError"]
