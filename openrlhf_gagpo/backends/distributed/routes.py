"""How weights travel to the engines, on which the driver, the policy's workers and the engines agree."""

from __future__ import annotations

from typing import Any, Literal

__all__ = ["Route", "gpu_route"]

Route = Literal["file", "ipc", "nccl", "openrlhf"]
"""In memory on a machine without GPUs (see ``weights``), by CUDA IPC or NCCL (see ``transfer``), or OpenRLHF's way."""


def gpu_route(args: Any) -> Route:
    """Return how weights travel from GPUs.

    Args:
        args: OpenRLHF's arguments of the run.

    Returns:
        OpenRLHF's route where it is asked for by one of its flags, and for a tensor-parallel policy, whose parameters
        only it can put together.
    """
    if args.vllm.sync_with_ray or args.vllm.sync_backend != "nccl" or args.ds.tensor_parallel_size > 1:
        return "openrlhf"
    return "ipc" if args.train.colocate_all else "nccl"
