"""What plays episodes needs of an environment pool, wherever its processes are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, TypeVarTuple

from agent_envs import TextEnv
from openrlhf_gagpo.rollout.episode import EnvSession

__all__ = ["EnvironmentPool", "PoolSession"]

Arguments = TypeVarTuple("Arguments")
Answer = TypeVar("Answer")


class PoolSession(EnvSession, Protocol):
    """A session of a pool. Its methods raise what those of ``agent_envs.workers.Session`` do."""

    async def snapshot(self) -> object: ...


class EnvironmentPool(Protocol):
    """Many instances of one environment. Its methods raise what those of ``agent_envs.workers.EnvPool`` do."""

    async def open(self) -> PoolSession: ...

    async def inspect(
        self, function: Callable[[Callable[[], TextEnv], *Arguments], Answer], *arguments: *Arguments
    ) -> Answer: ...

    def stats(self) -> dict[str, int]: ...

    async def aclose(self) -> None: ...
