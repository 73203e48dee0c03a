from __future__ import annotations

import asyncio
import os
import signal

import pytest

from openrlhf_gagpo.rollout.episode import REPLAYS
from openrlhf_gagpo.rollout.player import EpisodePlayer, RolloutSettings
from openrlhf_gagpo.rollout.types import Completion, Episode, EpisodeRequest, Prompt, SamplingParams
from support.characters import Characters

SETTINGS = RolloutSettings(
    "vault", {"max_steps": 15}, workers=2, think=False, action_tags=False, max_prompt_tokens=10**6, concurrency=16
)


class Killing:
    """Looks around, and kills the environment server at some of its turns. Then all wait until the pool knows."""

    def __init__(self, player: EpisodePlayer, deaths: list[int]) -> None:
        self._player = player
        self._deaths = deaths
        self._turns = 0
        self._killed = 0

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        self._turns += 1
        if self._turns in self._deaths:
            os.kill(self._player._pool.pids[0], signal.SIGKILL)
            self._killed += 1
        while self._player.stats()["env/servers"] < self._killed:
            await asyncio.sleep(0.001)
        return Completion([], [], "stop", "look")


@pytest.mark.parametrize("deaths", [1, REPLAYS, REPLAYS + 1])
def test_episodes_are_played_again_when_the_environment_server_dies(deaths: int) -> None:
    """All 16 are in flight at every death, so that each is lost as often as the server."""
    done: list[Episode] = []

    async def run() -> tuple[list[Episode], dict[str, float]]:
        player = EpisodePlayer(SETTINGS, Characters())
        requests = [
            EpisodeRequest(f"vault-train-{n // 4}", f"g{n // 4}", f"{n}", 0, sampling_seed=n) for n in range(16)
        ]
        try:
            policy = Killing(player, [40 + 48 * death for death in range(deaths)])
            episodes = await player.play(requests, policy, SamplingParams(8), done.append)
            return episodes, player.stats()
        finally:
            await player.aclose()

    episodes, stats = asyncio.run(asyncio.wait_for(run(), 60))
    assert sorted(done, key=id) == sorted(episodes, key=id)
    assert stats["env/servers"] == deaths
    if deaths <= REPLAYS:
        assert [len(episode.steps) for episode in episodes] == [15] * 16
    else:
        assert {episode.end_reason for episode in episodes} == {"env_fault"}
        assert all(str(episode.error).startswith("ServerLost: the fork server of ") for episode in episodes)
