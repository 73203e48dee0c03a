"""What an agent has to play one task: the environment, the policy, and the run's prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agent_envs.workers import ServerLost
from openrlhf_gagpo.rollout.episode import play_episode, unplayed
from openrlhf_gagpo.rollout.parse import ACTION_TAGS
from openrlhf_gagpo.rollout.prompt import PromptBuilder, TurnPrompts
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, Message, Policy, SamplingParams
from openrlhf_gagpo.rollout.watched import WatchedSession
from openrlhf_gagpo.seeds import stable_seed

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """One task, ready to be played."""

    request: EpisodeRequest
    session: WatchedSession
    policy: Policy
    prompts: PromptBuilder
    """The prompts of a training run with the same settings."""
    sampling: SamplingParams
    decode: Callable[[Sequence[int]], str]
    think: bool
    action_tags: bool
    tag_names: Sequence[str] = ACTION_TAGS
    stop: tuple[str, ...] = ()
    """Names of the tags that end a response in the environment."""

    async def play(self, prompts: TurnPrompts | None = None, trial: int = 0) -> Episode:
        """Play the task once, from the same start in every trial, and return the episode.

        Args:
            prompts: words the turns; by default as in training.
            trial: 0-based; later trials sample from other seeds.
        """
        request = self._request(trial)
        try:
            return await play_episode(
                request,
                self.session,
                self.policy,
                prompts or self.prompts,
                sampling=self.sampling,
                decode=self.decode,
                think=self.think,
                action_tags=self.action_tags,
                tag_names=self.tag_names,
                stop=self.stop,
            )
        except ServerLost as lost:
            # The agent has but this session, so it cannot play again.
            return unplayed(request, lost)

    async def ask(self, messages: Sequence[Message], purpose: str) -> str:
        """Return the policy's answer to a conversation outside the environment.

        Args:
            purpose: distinguishes the seeds of the questions of one task.

        Raises:
            PromptTooLong: the conversation does not fit.
            PolicyFault: the policy gave no answer.
        """
        seed = self.request.sampling_seed
        params = replace(self.sampling, seed=None if seed is None else stable_seed(seed, purpose))
        completion = await self.policy.generate(self.prompts.render(messages), params)
        return self.decode(completion.token_ids) if completion.text is None else completion.text

    def _request(self, trial: int) -> EpisodeRequest:
        if trial == 0:
            return self.request
        seed = self.request.sampling_seed
        return replace(
            self.request,
            trajectory=f"{self.request.trajectory}.{trial}",
            sampling_seed=None if seed is None else stable_seed(seed, "trial", trial),
        )
