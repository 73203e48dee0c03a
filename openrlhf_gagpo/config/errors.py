"""Errors whose message is all that a user needs: the command line prints it without a traceback."""

from __future__ import annotations

__all__ = ["ConfigError", "RunError"]


class ConfigError(Exception):
    """A configuration that cannot run; the message is one sentence that names the flag and says what to do."""


class RunError(Exception):
    """A run that cannot go on; the message is one sentence that says what happened and what to do."""
