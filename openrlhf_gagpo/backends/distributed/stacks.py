"""What Ray workers are doing, also those that hang: each writes its stacks to a file when it gets a signal.

A worker that hangs in a call answers no other one, so it is not asked by a call. Python's fault handler runs at the
signal itself, whatever the process is in.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Place", "listen", "stacks_of"]

_WRITE_S = 5.0
"""Time that a worker gets to write its stacks."""
_READ_S = 60.0
"""Time that a node gets to start a task that reads them."""


class Place(NamedTuple):
    """Where a worker is."""

    name: str
    node: str
    pid: int


def listen(name: str) -> Place:
    """Let this worker write its stacks to its file whenever it gets SIGUSR1, and return where it is.

    Args:
        name: of the worker, for readers.
    """
    # Open as long as the process lives.
    file = _file(os.getpid()).open("w", encoding="utf-8")
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
    return Place(name, ray.get_runtime_context().get_node_id(), os.getpid())


def stacks_of(places: Sequence[Place]) -> str:
    """Return the stacks of workers on any node, each under its name.

    Raises:
        ray.exceptions.RayError: a node does not answer.
    """
    by_node: dict[str, list[Place]] = {}
    for place in places:
        by_node.setdefault(place.node, []).append(place)
    reads = [
        _read.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(here)
        for node, here in by_node.items()
    ]
    return "\n".join(ray.get(reads, timeout=_READ_S))


@ray.remote(num_cpus=0)
def _read(places: Sequence[Place]) -> str:
    return "\n".join(f"--- {place.name}, process {place.pid}\n{_stacks(place.pid)}" for place in places)


def _stacks(pid: int) -> str:
    file = _file(pid)
    try:
        before = file.stat().st_size
        os.kill(pid, signal.SIGUSR1)
        return _grown(file, before)
    except OSError as error:
        return f"(no stacks: {error.strerror})\n"


def _grown(file: Path, before: int) -> str:
    """Return what is written to a file behind ``before``, once it is no longer written."""
    deadline = time.monotonic() + _WRITE_S
    known = before
    while time.monotonic() < deadline:
        time.sleep(0.05)
        size = file.stat().st_size
        if size > before and size == known:
            break
        known = size
    return file.read_bytes()[before:].decode(errors="replace") or "(it did not answer the signal)\n"


def _file(pid: int) -> Path:
    node: Any = ray._private.worker._global_node
    return Path(node.get_logs_dir_path()) / f"gagpo-stacks-{pid}.txt"
