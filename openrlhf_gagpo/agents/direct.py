"""One answer per turn from the prompt of training: the agent for which a checkpoint was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf_gagpo.agents.registry import Agent, register
from openrlhf_gagpo.rollout.types import Episode

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.table import Table

__all__ = ["DirectAgent"]


@register("direct")
class DirectAgent(Agent):
    """Plays exactly as the episodes of a training run are played."""

    reads_prompts = False

    async def play(self, table: Table) -> list[Episode]:
        return [await table.play()]
