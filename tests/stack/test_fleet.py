"""How engines share groups and environment workers, with stand-ins for the engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf_gagpo.rollout.player import RolloutSettings
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams

Make = Callable[..., Any]


class Engine:
    """A handle of an engine on a node: a call returns a function, whose result is the answer."""

    def __init__(self, number: int, node: str) -> None:
        self.number, self.node = number, node
        self.groups: list[str] = []
        self.settings: RolloutSettings | None = None
        self.listen, self.prepare, self.play = (
            SimpleNamespace(remote=partial(partial, call)) for call in (self._listen, self._prepare, self._play)
        )

    def _listen(self) -> Any:
        from openrlhf_gagpo.backends.distributed.stacks import Place

        return Place("rollout engine", self.node, self.number)

    def _prepare(self, settings: RolloutSettings, model: str, fast: bool) -> None:
        self.settings = settings

    def _play(self, requests: list[EpisodeRequest], sampling: SamplingParams) -> list[Episode]:
        self.groups += {request.group for request in requests}
        return [Episode(item.task, item.group, item.trajectory, item.env_seed, [], "terminated") for item in requests]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a fleet of engines on nodes, of which the first finishes a group only when no other engine has one."""
    from openrlhf_gagpo.backends.distributed import fleet

    def get(refs: Any, timeout: float) -> Any:
        return [ref() for ref in refs] if isinstance(refs, list) else refs()

    def wait(refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        done = max(refs, key=lambda ref: ref.func.__self__.number)
        return [done], [ref for ref in refs if ref is not done]

    monkeypatch.setattr(fleet.ray, "get", get)
    monkeypatch.setattr(fleet.ray, "wait", wait)

    def made(nodes: str, settings: RolloutSettings) -> Any:
        specs: Any = [SimpleNamespace(handle=Engine(number, node)) for number, node in enumerate(nodes)]
        return fleet.EngineFleet(specs, settings, "model", fast_tokenizer=True, stall_s=0.0, limit_s=60.0)

    return made


def test_a_slow_engine_gets_fewer_groups(make: Make) -> None:
    fleet = make("ab", RolloutSettings("vault", concurrency=4))
    requests = [EpisodeRequest("t", f"g{group}", f"g{group}t{member}", 0) for group in range(8) for member in range(2)]
    episodes = fleet.play(requests, SamplingParams(6), lambda episode: None)
    assert [episode.trajectory for episode in episodes] == [request.trajectory for request in requests]
    played = Counter({handle.number: len(handle.groups) for handle in fleet.handles})
    # What it holds from the start: a group that it plays, and one more.
    assert played == {0: 2, 1: 6}


@pytest.mark.parametrize(("placement", "workers"), [("local", [3, 3, 5]), ("ray", [2, 2, 2])])
def test_engines_share_the_environment_workers_of_a_node(make: Make, placement: Any, workers: list[int]) -> None:
    """With workers on other nodes, all engines share those."""
    fleet = make("aab", RolloutSettings("vault", workers=5, placement=placement, concurrency=8))
    fleet.prepare()
    assert [handle.settings.workers for handle in fleet.handles] == workers
    assert {handle.settings.concurrency for handle in fleet.handles} == {3}
    assert [place.node for place in fleet.places] == list("aab")
