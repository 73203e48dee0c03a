"""The one exception of the configuration."""

from __future__ import annotations

__all__ = ["ConfigError"]


class ConfigError(Exception):
    """A configuration that cannot run; the message is one sentence that names the flag and says what to do."""
