"""Random play, as the lower end of a table."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent_envs.base import TextEnv
from openrlhf_gagpo.policies.registry import PolicySetting, PolicySource, register
from openrlhf_gagpo.policies.wording import spoken
from openrlhf_gagpo.rollout.types import Completion, Policy, Prompt, SamplingParams

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.watched import WatchedSession

__all__ = ["RandomPolicy"]

_WORDS = 3
"""Words of the task that stand in for a placeholder, such as the query of a search."""


class _Random:
    def __init__(self, session: WatchedSession, setting: PolicySetting, placeholders: Sequence[str]) -> None:
        self._session = session
        self._setting = setting
        self._placeholders = placeholders

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        rng = random.Random(params.seed)
        offered = self._session.admissible_actions
        action = rng.choice(offered) if offered else ""
        for placeholder in self._placeholders:
            if placeholder in action:
                words = self._session.instruction.split()
                action = action.replace(placeholder, " ".join(rng.sample(words, min(_WORDS, len(words)))))
        return spoken(action, self._setting)


@register("random")
class RandomPolicy(PolicySource):
    """Takes any admissible action with equal probability, from the seed of the turn."""

    reads_prompts = False
    _placeholders: Sequence[str] = ()

    def check(self, env: TextEnv, task: str) -> None:
        self._placeholders = env.placeholders

    def seat(self, session: WatchedSession) -> Policy:
        return _Random(session, self.setting, self._placeholders)
