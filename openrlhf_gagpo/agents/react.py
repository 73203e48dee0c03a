"""ReAct (Yao et al. 2022, arXiv 2210.03629): a thought and an action per turn, over the growing history of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openrlhf_gagpo.agents.conversation import WORDING, Conversation
from openrlhf_gagpo.agents.registry import Agent, register
from openrlhf_gagpo.rollout.types import Episode

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.table import Table

__all__ = ["ReactAgent"]


@register("react")
class ReactAgent(Agent):
    """Shows the policy all of its thoughts and actions so far, and what the environment answered to each.

    Thought and action are in the tags of the run's prompts instead of the paper's line labels, so that they are read
    in the same way as those of a trained model.
    """

    thinks = True

    def wording(self) -> str:
        return WORDING

    async def play(self, table: Table) -> list[Episode]:
        return [await table.play(Conversation(table.prompts))]
