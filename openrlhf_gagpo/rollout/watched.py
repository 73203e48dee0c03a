"""An environment session that remembers what it answered last, for agents and policies that look at it."""

from __future__ import annotations

from agent_envs.base import Reset, StepResult
from agent_envs.workers import Session

__all__ = ["WatchedSession"]


class WatchedSession:
    """``rollout.episode.EnvSession`` over a session of a pool."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.instruction = ""
        """The task in words, if the environment gives one apart from its observations."""
        self.admissible_actions: tuple[str, ...] = ()
        """Actions that are possible now, whether the prompt lists them or not."""

    async def reset(self, task: str, seed: int) -> Reset:
        """Start ``task``."""
        start = await self._session.reset(task, seed)
        self.instruction, self.admissible_actions = start.task, start.admissible_actions
        return start

    async def restore(self, state: object) -> None:
        """Continue from a snapshot, which says nothing of what is possible there."""
        await self._session.restore(state)
        self.instruction, self.admissible_actions = "", ()

    async def step(self, action: str) -> StepResult:
        """Take one action given as text."""
        result = await self._session.step(action)
        self.admissible_actions = result.admissible_actions
        return result

    async def expert_action(self) -> str:
        """Return the expert's action for the current state. Raises ``EnvError`` if there is none."""
        return await self._session.expert_action()

    async def close(self) -> None:
        """Give the instance back to its pool."""
        await self._session.close()
