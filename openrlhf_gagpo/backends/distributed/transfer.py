"""Weight sync over GPUs with vLLM's own engines for it: many parameters at a time, in buffers of a bounded size.

To engines on the policy's GPUs the weights go by CUDA IPC, to others by NCCL. They take two calls of every engine and
one for each buffer (by NCCL one for all), where OpenRLHF makes one for each parameter.

Only policy workers on GPUs import this module, when they first send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from torch import Tensor
from vllm.distributed.weight_transfer import base, ipc_engine, nccl_engine
from vllm.utils.network_utils import get_open_port

from openrlhf_gagpo.backends.distributed.workers import answers

__all__ = ["PolicySource", "Transfer"]

_BUFFER_BYTES = 2**29
"""Size of a buffer, unless a parameter is larger; by NCCL of two together, each of which one parameter may exceed."""


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
        self.gpus = len(handles) * gpus
        """Of all of them."""
        self.failure: Exception | None = None
        """What the first of them that failed met."""
        self.on_failure: Callable[[], None] | None = None
        """Called when one fails; has to end the broadcast, which would otherwise wait for it without end."""

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
        try:
            answers(refs, "sending the weights to the engines", self._limit_s)
        except Exception as error:
            self.failure = self.failure or error
            if self.on_failure is not None:
                self.on_failure()
            raise


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


class Transfer:
    """The way from the policy to some engines. All ranks of the policy make it, and send, together.

    Args:
        route: "ipc" or "nccl", for which the engines were started.
        source: the weights.
        handles: the engines' actors.
        args: OpenRLHF's arguments of the run.
    """

    def __init__(self, route: str, source: PolicySource, handles: Sequence[Any], args: Any) -> None:
        self._engines = Engines(handles, args.vllm.tensor_parallel_size, args.train.worker_timeout)
        connect = {"ipc": self._over_ipc, "nccl": self._over_nccl}[route]
        with self._first_cause():
            self._sender = connect(source, torch.distributed.get_rank())

    def _over_ipc(self, source: PolicySource, rank: int) -> base.TrainerWeightTransferEngine[Any]:
        here = ipc_engine.IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=source.buffer_bytes())
        return ipc_engine.IPCTrainerWeightTransferEngine.trainer_init(here, client=self._engines, source=source)

    def _over_nccl(self, source: PolicySource, rank: int) -> base.TrainerWeightTransferEngine[Any]:
        meeting = nccl_engine.NCCLTrainerInitInfo(
            rank=rank,
            master_address=ray.util.get_node_ip_address(),
            master_port=get_open_port(),
            world_size=1 + self._engines.gpus,
            packed_buffer_size_bytes=_BUFFER_BYTES // 2,
        )
        # vLLM would leave another stream as the current one, with which DeepSpeed does not reckon.
        with torch.cuda.stream(torch.cuda.current_stream()):
            sender = nccl_engine.NCCLTrainerWeightTransferEngine.trainer_init(
                meeting, client=self._engines, source=source
            )
        group = sender.model_update_group
        if group is not None:
            if getattr(group, "disabled", False):
                # It would send nothing, and say nothing.
                raise RuntimeError("vLLM found no NCCL to send weights with; see VLLM_DISABLE_PYNCCL and its log")
            self._engines.on_failure = group.destroy
        return sender

    def send(self) -> None:
        """Send the weights.

        Raises:
            Exception: what an engine or this process met. Other ranks may then wait in vain.
        """
        with self._first_cause():
            self._sender.send_weights()

    @contextmanager
    def _first_cause(self) -> Iterator[None]:
        """Raise what an engine met, if one failed, instead of what that led to in this process."""
        try:
            yield
        except Exception as error:
            cause = self._engines.failure
            if cause is None or cause is error:
                raise
            raise cause from error
