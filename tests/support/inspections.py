"""Functions that worker processes run, for the tests of the pool."""

from __future__ import annotations

from collections.abc import Callable

from agent_envs import TextEnv

__all__ = ["hang"]


def hang(make: Callable[[], TextEnv]) -> None:
    """Never return."""
    while True:
        pass
