"""The processes that hold models, in groups of ranks, as the driver sees them.

A worker imports the class that it is made of by itself, so the driver needs neither OpenRLHF's trainers nor DeepSpeed.
The ranks of a group start at the same time.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from openrlhf_gagpo.backends.distributed.stacks import Place, listen
from openrlhf_gagpo.errors import RunError

__all__ = ["WorkerGroup", "Workers", "answers", "wait_all"]


def answers(refs: Sequence[Any], what: str, limit_s: float) -> list[Any]:
    """Return what workers answer.

    Args:
        what: they do, as a noun for the message.
        limit_s: seconds that they get.

    Raises:
        RunError: they take longer.
        ray.exceptions.RayError: one has failed or died.
    """
    if not refs:
        # Ray would start for this, if it has not.
        return []
    try:
        results: list[Any] = ray.get(list(refs), timeout=limit_s)
    except ray.exceptions.GetTimeoutError as error:
        raise RunError(
            f"{what} did not end within {limit_s:g} s; raise --train.worker_timeout if that is too short, else see "
            "what hangs in the stacks of the run folder or in Ray's logs"
        ) from error
    return results


class WorkerBase:
    """One rank: a process with models of classes that only this process imports.

    Args:
        targets: by role, such as "policy": ``module:Class`` of one of OpenRLHF's model actors.
    """

    def __init__(self, targets: Mapping[str, str], world_size: int, rank: int) -> None:
        self._roles = " and ".join(targets)
        self._models: dict[str, Any] = {}
        for role, target in targets.items():
            module, _, name = target.partition(":")
            self._models[role] = getattr(importlib.import_module(module), name)(world_size, rank, None, None)

    def __repr__(self) -> str:
        return self._roles

    def address(self) -> tuple[str, int]:
        """Return an address on this machine at which the ranks can meet."""
        address: tuple[str, int] = next(iter(self._models.values())).get_master_addr_port()
        return address

    def join(self, address: tuple[str, int]) -> Place:
        """Take the address of rank 0, prepare this process for ``stacks_of``, and return where it is."""
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address[0], str(address[1])
        return listen(self._roles)

    def call(self, role: str, method: str, *args: Any, **named: Any) -> Any:
        """Call a method of a model."""
        return getattr(self._models[role], method)(*args, **named)


_Worker = ray.remote(WorkerBase)


class Workers:
    """Processes of models, one for each rank, which start together; a model is reached through its ``WorkerGroup``.

    Models that share GPUs can share these processes, which saves each of them its imports and a CUDA context.

    Args:
        targets: by role, such as "policy": ``module:Class`` that each rank makes.
        size: number of ranks.
        placement: placement group with a bundle for each rank.
        share: part of a GPU that a rank reserves.
        limit_s: seconds that a call may take.
    """

    def __init__(self, targets: Mapping[str, str], size: int, placement: Any, *, share: float, limit_s: float) -> None:
        self.limit_s = limit_s
        self.handles = [
            _Worker.options(
                num_cpus=share,
                num_gpus=share,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank),
            ).remote(dict(targets), size, rank)
            for rank in range(size)
        ]
        self._roles = " and ".join(targets)
        # Ray hands the address on, so nobody waits for it here.
        address = self.handles[0].address.remote()
        self._joined = [handle.join.remote(address) for handle in self.handles]

    def places(self) -> list[Place]:
        """Return where the ranks are, once they have started."""
        return answers(self._joined, f"starting the {self._roles} workers", self.limit_s)


class WorkerGroup:
    """The ranks of one model; OpenRLHF's ``RayActorGroup`` without its waits.

    Args:
        role: what the model is, such as "policy".
        workers: processes that have it.
        copies: ranks that read the same rows, since they share a ring or a tensor-parallel model.
    """

    def __init__(self, role: str, workers: Workers, *, copies: int = 1) -> None:
        self.role = role
        self.copies = copies
        self.limit_s = workers.limit_s
        self.handles = workers.handles

    @property
    def ranks(self) -> int:
        """Data-parallel ranks, each of which reads rows of its own."""
        return len(self.handles) // self.copies

    def async_run_method(self, method_name: str, *args: Any, **named: Any) -> list[Any]:
        """Call a method of every rank; the references are for ``wait``."""
        return [handle.call.remote(self.role, method_name, *args, **named) for handle in self.handles]

    def scatter(self, method_name: str, shards: Sequence[Any], **named: Any) -> list[Any]:
        """Call a method of every rank with its data-parallel rank's part of ``shards``; see ``async_run_method``."""
        parts = [ray.put(shard) for shard in shards]
        return [
            handle.call.remote(self.role, method_name, parts[rank // self.copies], **named)
            for rank, handle in enumerate(self.handles)
        ]

    def wait(self, refs: Sequence[Any], what: str) -> list[Any]:
        """Return the answers to a call, one for each data-parallel rank.

        Raises:
            RunError: they take too long (see ``answers``).
        """
        return wait_all([(self, refs)], what)[0]

    def run(self, method_name: str, *args: Any, **named: Any) -> list[Any]:
        """Call a method of every rank and wait for the answers."""
        return self.wait(self.async_run_method(method_name, *args, **named), f"the {method_name.replace('_', ' ')}")


def wait_all(calls: Sequence[tuple[WorkerGroup, Sequence[Any]]], what: str) -> list[list[Any]]:
    """Return the answers to a call of every group, each as ``WorkerGroup.wait`` does; a failure of one ends the wait.

    Raises:
        RunError: they take too long (see ``answers``).
    """
    names = " and ".join(group.role for group, _ in calls)
    refs = [ref for _, group_refs in calls for ref in group_refs]
    results = iter(answers(refs, f"{what} of the {names} workers", max(group.limit_s for group, _ in calls)))
    return [list(islice(results, len(group_refs)))[:: group.copies] for group, group_refs in calls]
