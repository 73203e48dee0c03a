"""A model folder through a vLLM engine that this process starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openrlhf_gagpo import machine
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.options import declare
from openrlhf_gagpo.policies.folder import FolderOptions, FolderPolicy
from openrlhf_gagpo.policies.registry import register
from openrlhf_gagpo.rollout.types import Policy

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.watched import WatchedSession

__all__ = ["VllmEngineOptions", "VllmEnginePolicy"]

_CPU_CACHE_BYTES = 2**29
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class VllmEngineOptions(FolderOptions):
    """Options of a vLLM engine."""

    operational = frozenset({"tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization"})

    tensor_parallel_size: int = declare(1, "GPUs that the engine is split over", range=(1, 1024))
    data_parallel_size: int = declare(1, "engines that share the episodes", range=(1, 1024))
    gpu_memory_utilization: float = declare(0.9, "share of a GPU's memory that the engine takes", range=(0.01, 1))


@register("vllm_engine", VllmEngineOptions)
class VllmEnginePolicy(FolderPolicy):
    """Samples with an engine of its own, whose turns are batched as they arrive."""

    _llm: Any = None

    async def start(self, episodes: int, concurrency: int) -> None:
        on_gpu = machine.has_cuda()
        if not on_gpu:
            # On a CPU, vLLM would run the model in further processes to pin its threads.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"a vLLM engine needs the package {error.name}, which is not installed; install openrlhf-gagpo[gpu]"
            ) from error
        options = self.options
        for_cpu: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": _CPU_CACHE_BYTES}
        for_gpu: dict[str, Any] = {"gpu_memory_utilization": options.gpu_memory_utilization}
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=options.path,
                dtype=_DTYPES[options.dtype],
                tensor_parallel_size=options.tensor_parallel_size,
                data_parallel_size=options.data_parallel_size,
                max_model_len=self.setting.max_len,
                seed=self.setting.seed,
                trust_remote_code=True,
                logprobs_mode="processed_logprobs",
                **(for_gpu if on_gpu else for_cpu),
            )
        )

    def seat(self, session: WatchedSession) -> Policy:
        from openrlhf_gagpo.backends.vllm_policy import EnginePolicy

        return EnginePolicy(self._llm)

    async def aclose(self) -> None:
        if self._llm is not None:
            self._llm.shutdown()
