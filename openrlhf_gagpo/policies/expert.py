"""The environment's own expert, as the upper end of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_envs.base import TextEnv
from agent_envs.errors import EnvError
from openrlhf_gagpo.errors import ConfigError, PolicyFault
from openrlhf_gagpo.policies.registry import PolicySetting, PolicySource, register
from openrlhf_gagpo.policies.wording import spoken
from openrlhf_gagpo.rollout.types import Completion, Policy, Prompt, SamplingParams

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.watched import WatchedSession

__all__ = ["ExpertPolicy"]


class _Expert:
    def __init__(self, session: WatchedSession, setting: PolicySetting) -> None:
        self._session = session
        self._setting = setting

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        try:
            return spoken(await self._session.expert_action(), self._setting)
        except (EnvError, TimeoutError) as error:
            raise PolicyFault(f"the expert does not know: {error}", requests=0) from error


@register("expert")
class ExpertPolicy(PolicySource):
    """Does what the environment's expert would do."""

    reads_prompts = False

    def check(self, env: TextEnv, task: str) -> None:
        # An environment may have an expert only for an episode that runs.
        env.reset(task, 0)
        if env.expert() is None:
            raise ConfigError(f"the environment {env.name} has no expert; choose another --policy")

    def seat(self, session: WatchedSession) -> Policy:
        return _Expert(session, self.setting)
