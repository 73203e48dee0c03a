"""Environment hosts as Ray actors on the nodes of the cluster."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from openrlhf_gagpo.backends.remote_envs.host import EnvHost
from openrlhf_gagpo.backends.remote_envs.pool import Node, RemotePool
from openrlhf_gagpo.rollout.player import RolloutSettings

__all__ = ["environment_nodes", "ray_pool"]

# Without a reservation, a host can always start, whatever placement groups hold.
_EnvHostActor: Any = ray.remote(num_cpus=0, max_restarts=0)(EnvHost)
_CALLS = 1000
"""Calls that an actor takes at a time by default; the others would wait, pings among them."""


def environment_nodes() -> list[Node]:
    """Return the living nodes without GPUs or, if all have some, all."""
    living = [node for node in ray.nodes() if node["Alive"]]
    without = [node for node in living if not node["Resources"].get("GPU")]
    return [Node(node["NodeID"], node["NodeManagerHostname"]) for node in without or living]


def ray_pool(settings: RolloutSettings) -> RemotePool:
    """Return a pool of hosts on ``environment_nodes``, each with ``settings.workers`` processes.

    They end with the process that uses the pool.
    """
    return RemotePool(environment_nodes, lambda node: _ActorLink(settings, node))


class _ActorLink:
    """A host in an actor of its own."""

    def __init__(self, settings: RolloutSettings, node: Node) -> None:
        self._actor = _EnvHostActor.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            max_concurrency=_CALLS + 2 * settings.concurrency,
        ).remote(settings)

    async def ask(self, method: str, *arguments: object) -> bytes:
        try:
            answer: bytes = await getattr(self._actor, method).remote(*arguments)
        except ray.exceptions.RayTaskError:
            # The host is there; it has a defect.
            raise
        except ray.exceptions.RayError as error:
            raise ConnectionError(_reason(error)) from error
        return answer

    def kill(self) -> None:
        ray.kill(self._actor)


def _reason(error: ray.exceptions.RayError) -> str:
    """Return the last line of Ray's message, in which it says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300].rstrip('.')}" if lines else type(error).__name__
