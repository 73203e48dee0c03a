"""Weight sync over GPUs with vLLM's own engines for it: many parameters at a time, in buffers of a bounded size.

To engines on the policy's GPUs the weights go by CUDA IPC, to others by NCCL. A sync takes two calls of every engine
and one for each buffer (by NCCL one for all), where OpenRLHF's takes one for each parameter.

Only policy workers on GPUs import this module, when they first send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch
from torch import Tensor
from vllm.distributed.weight_transfer import base, ipc_engine, nccl_engine
from vllm.utils.network_utils import get_open_port

from openrlhf_gagpo.backends.distributed.workers import answers

__all__ = ["make_transfer"]

_BUFFER_BYTES = 2**29
"""Size of a buffer, unless a single parameter is larger. While weights are sent, engines have no cache yet."""


class Engines:
    """What vLLM asks of the receivers (``VLLMWeightSyncClient``), for engines that know nothing of one another.

    Args:
        handles: their actors.
        gpus: of each.
        limit_s: seconds that a call may take.
    """

    def __init__(self, handles: Sequence[Any], gpus: int, limit_s: float) -> None:
        self._handles = handles
        self._gpus = gpus
        self._limit_s = limit_s

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [dict(init_info) for _ in self._handles]
        for number, info in enumerate(infos):
            if "rank_offset" in info:
                # vLLM numbers the GPUs of one engine.
                info["rank_offset"] += number * self._gpus
        self._call("init_weight_transfer_engine", [{"init_info": info} for info in infos])

    def start_weight_update(self) -> None:
        self._call("start_weight_update", [{} for _ in self._handles])

    def update_weights(self, update_info: Any) -> None:
        self._call("update_weights", [{"update_info": update_info} for _ in self._handles])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update", [{} for _ in self._handles])

    def _call(self, step: str, arguments: Sequence[dict[str, Any]]) -> None:
        refs = [
            handle.transfer_weights.remote(step, **given)
            for handle, given in zip(self._handles, arguments, strict=True)
        ]
        answers(refs, "sending the weights to the engines", self._limit_s)


class PolicySource(base.WeightSource):
    """The weights as vLLM wants to be given them, again for every sync.

    Args:
        weights: yields them with their names. All ranks go through them together.
    """

    def __init__(self, weights: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        self._weights = weights
        self._metadata = [base.ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in weights()]

    def metadata(self) -> list[base.ParamMeta]:
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self._weights()

    def buffer_bytes(self) -> int:
        """Return the size of a buffer into which every parameter fits, without room that none needs."""
        sizes = [meta.dtype.itemsize * torch.Size(meta.shape).numel() for meta in self._metadata]
        return max(*sizes, min(sum(sizes), _BUFFER_BYTES))


def make_transfer(
    route: str, weights: Callable[[], Iterator[tuple[str, Tensor]]], handles: Sequence[Any], args: Any
) -> base.TrainerWeightTransferEngine[Any]:
    """Connect the policy with engines; all of its ranks have to, and have to call ``send_weights`` together.

    Args:
        route: "ipc" or "nccl" (see ``weights.gpu_route``), for which the engines were started.
        weights: see ``PolicySource``.
        handles: the engines' actors.
        args: OpenRLHF's arguments of the run.
    """
    gpus = args.vllm.tensor_parallel_size
    engines = Engines(handles, gpus, args.train.worker_timeout)
    source = PolicySource(weights)
    rank = torch.distributed.get_rank()
    if route == "ipc":
        here = ipc_engine.IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=source.buffer_bytes())
        return ipc_engine.IPCTrainerWeightTransferEngine.trainer_init(here, client=engines, source=source)
    meeting = nccl_engine.NCCLTrainerInitInfo(
        rank=rank,
        master_address=ray.util.get_node_ip_address(),
        master_port=get_open_port(),
        world_size=1 + len(handles) * gpus,
        packed_buffer_size_bytes=_BUFFER_BYTES,
    )
    return nccl_engine.NCCLTrainerWeightTransferEngine.trainer_init(meeting, client=engines, source=source)
