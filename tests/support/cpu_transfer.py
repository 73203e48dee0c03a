"""CUDA's part in vLLM's weight transfer, played by files, logical GPUs and gloo; all else runs as it does on GPUs.

The ids of GPUs are those that Ray gives out, so that a buffer is found only by the engine that shares a GPU with its
writer, and two engines are reached by one group only with ranks of their own.
"""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import nullcontext
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import ray
import torch

from openrlhf_gagpo.backends.distributed import actors, engine, weights
from openrlhf_gagpo.backends.distributed.engine import AgentRolloutActorBase
from openrlhf_gagpo.backends.distributed.routes import gpu_route

__all__ = ["BUFFER_BYTES", "Engine", "Policy", "Worker"]

BUFFER_BYTES = 100_000
"""Of which a tiny model fills several."""
_GPU = "GAGPO_TEST_GPU"
_ENGINE = "GAGPO_TEST_ENGINE"


class Torch:
    """The module, with a device of its own name."""

    accelerator = SimpleNamespace(current_device_index=lambda: 0, synchronize=lambda: None)
    _stream = SimpleNamespace(synchronize=lambda: None)
    cuda = SimpleNamespace(
        current_stream=lambda: Torch._stream,
        stream=nullcontext,
        Stream=lambda device: Torch._stream,
        synchronize=lambda: None,
        ipc_collect=lambda: None,
        get_device_properties=lambda index: SimpleNamespace(uuid=os.environ[_GPU]),
    )

    @staticmethod
    def empty(size: int, *, dtype: torch.dtype, device: Any) -> torch.Tensor:
        """Memory that another process can open by its name, which is kept with it."""
        if device != "cuda":
            return torch.empty(size, dtype=dtype, device=device)
        path = tempfile.mkstemp(prefix="gagpo-buffer-")[1]
        buffer = torch.from_file(path, shared=True, size=size, dtype=dtype)
        buffer.path = path  # type: ignore[attr-defined]
        return buffer

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _open(size: int, path: str, *_: object) -> torch.Tensor:
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


class Gloo:
    """A group over TCP, as ``PyNcclCommunicator`` is used."""

    def __init__(self, host: str, port: int, rank: int, size: int, device: object) -> None:
        limit = timedelta(seconds=60)
        store = torch.distributed.TCPStore(host, port, size, is_master=rank == 0, timeout=limit)
        self._group = torch.distributed.ProcessGroupGloo(store, rank, size, limit)
        self._aborted = threading.Event()

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        work = self._group.broadcast(tensor, src)
        while not work.is_completed():
            if self._aborted.wait(0.001):
                raise RuntimeError("the group was aborted")

    def destroy(self) -> None:
        self._aborted.set()


def install() -> None:
    """Put these in CUDA's place in this process."""
    from torch.multiprocessing import reductions
    from vllm.distributed.weight_transfer import base, ipc_engine, nccl_common, packed_tensor

    stand_in: Any = Torch()
    for module in (base, ipc_engine, nccl_common, packed_tensor):
        module.torch = stand_in  # type: ignore[attr-defined]
    packed_tensor.reduce_tensor = lambda buffer: (None, (buffer.numel(), buffer.path, 0, 0, 0, 0, 0))
    reductions.rebuild_cuda_tensor = _open
    nccl_common.stateless_init_process_group = Gloo


def gpu_of_this_actor() -> str:
    return f"GPU-{ray.get_gpu_ids()[0]}"


class Worker(weights.WeightFileWorker):
    """Imported in the engine's process, where vLLM's worker is."""


if _ENGINE in os.environ:
    install()


class Engine(AgentRolloutActorBase):
    """A rollout engine that is given weights as on a GPU, and counts the calls that bring them."""

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
        # Its worker's process inherits them.
        os.environ |= {_GPU: gpu_of_this_actor(), _ENGINE: "1"}
        of_gpu = {"weight_transfer_config": kwargs["weight_transfer_config"]}
        arguments = engine._cpu_engine_arguments
        engine._WORKER, engine._cpu_engine_arguments = f"{__name__}.Worker", lambda given: arguments(given) | of_gpu
        self.calls: list[str] = []
        self.fault = ""
        await AgentRolloutActorBase.__init__(self, *args, **kwargs)

    async def transfer_weights(self, step: str, **arguments: Any) -> None:
        self.calls.append(step)
        if step == self.fault:
            raise RuntimeError("no memory")
        await super().transfer_weights(step, **arguments)
        if step == "finish_weight_update":
            # What a CPU alone needs.
            await self.llm.collective_rpc("_repack_tied_heads")

    async def load_weight_file(self, path: str) -> None:
        raise AssertionError("the weights came as on a CPU")

    async def fail_at(self, step: str) -> None:
        self.fault = step

    async def calls_since(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls


class Policy(actors.PolicyActorBase):
    """The policy as on GPUs, as far as it sends weights."""

    def init_model_from_pretrained(self, strategy: Any, *args: Any) -> None:
        os.environ[_GPU] = gpu_of_this_actor()
        install()
        from openrlhf_gagpo.backends.distributed import transfer

        actors.route_from_here, transfer._BUFFER_BYTES = gpu_route, BUFFER_BYTES
        transfer.torch = Torch()  # type: ignore[attr-defined]
        super().init_model_from_pretrained(strategy, *args)
