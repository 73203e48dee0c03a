"""The agent rollout actor: OpenRLHF's vLLM actor that also plays the episodes.

Generation, prompts and the pipes of the environment workers share one actor process, so a turn needs no other process;
with ``env.placement ray`` it needs one call of another actor. The driver imports this module too, which is why vLLM is
imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from openrlhf.trainer.ray import vllm_engine

from openrlhf_gagpo.backends.distributed import compat
from openrlhf_gagpo.backends.distributed.routes import gpu_route
from openrlhf_gagpo.backends.distributed.stacks import Place, listen
from openrlhf_gagpo.backends.remote_envs.nodes import ray_pool
from openrlhf_gagpo.rollout.player import EpisodePlayer, RolloutSettings
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams

__all__ = ["AgentRolloutActor", "AgentRolloutActorBase", "EngineSpec", "create_engines"]

_WORKER = "openrlhf_gagpo.backends.distributed.weights.WeightFileWorker"
_CPU_CACHE_BYTES = 2**29
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


_OpenrlhfRollout: Any = compat.plain_class(vllm_engine.RolloutRayActor)


class AgentRolloutActorBase(_OpenrlhfRollout):
    """A vLLM engine that plays episodes. Implements ``rollout.types.Policy`` through ``sample``."""

    # Ray awaits it.
    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
        # OpenRLHF splits an engine over several GPUs through Ray, and hides all of them from this actor.
        on_gpu = kwargs.get("distributed_executor_backend") == "ray" or compat.cuda_available()
        if not on_gpu:
            kwargs = _cpu_engine_arguments(kwargs)
            # On a CPU, vLLM would run the model in a third process (actor, engine core, worker) to pin its threads.
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        elif "weight_transfer_config" in kwargs:
            # OpenRLHF's is for its own route, and would let the process of an engine on one GPU outlive this one.
            kwargs["worker_extension_cls"] = _WORKER
        await _OpenrlhfRollout.__init__(self, *args, **kwargs)
        self._player: EpisodePlayer | None = None

    async def listen(self) -> Place:
        """Prepare this process for ``stacks_of``, and return where it is."""
        return listen("rollout engine")

    async def prepare(self, settings: RolloutSettings, model: str, use_fast_tokenizer: bool) -> None:
        """Load the tokenizer and make the pool of environment workers, which start with the first episode."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True, use_fast=use_fast_tokenizer)
        pool = ray_pool(settings) if settings.placement == "ray" else None
        self._player = EpisodePlayer(settings, tokenizer, pool)

    @property
    def player(self) -> EpisodePlayer:
        """The episode player of a prepared actor."""
        if self._player is None:
            raise RuntimeError("the rollout actor has not been prepared")
        return self._player

    async def play(self, requests: Sequence[EpisodeRequest], sampling: SamplingParams) -> list[Episode]:
        """Play episodes with this engine's weights."""
        from openrlhf_gagpo.backends.vllm_policy import EnginePolicy

        return await self.player.play(requests, EnginePolicy(self.llm), sampling)

    async def env_stats(self) -> dict[str, float]:
        """Return the counters of the environment workers."""
        return self.player.stats()

    async def load_weight_file(self, path: str) -> None:
        """Load the policy's weights from an in-memory file (the route without CUDA); drop what old ones computed."""
        await self.llm.collective_rpc("load_weight_file", args=(path,))
        await self.llm.reset_prefix_cache()

    async def transfer_weights(self, step: str, **arguments: Any) -> None:
        """Take a step of vLLM's weight transfer (the routes over GPUs; see ``transfer``) in the engine's workers."""
        await self.llm.collective_rpc(step, kwargs=arguments)

    async def log_probs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return this engine's log-probabilities of the tokens of each sequence from the second on (for checks)."""
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.sampling_params import RequestOutputKind

        from openrlhf_gagpo.backends.vllm_policy import final_output

        params = VllmSamplingParams(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        results = []
        for ids in sequences:
            output = await final_output(self.llm, ids, params)
            results.append(
                [scores[token].logprob for token, scores in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
            )
        return results

    async def shutdown(self) -> None:
        """Stop the environment workers and the engine's own processes."""
        if self._player is not None:
            await self._player.aclose()
        self.llm.shutdown()


def _cpu_engine_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Replace engine arguments that have a meaning only on a GPU for the CPU build of vLLM."""
    arguments = {**kwargs, "worker_extension_cls": _WORKER, "enforce_eager": True, "enable_sleep_mode": False}
    arguments.pop("weight_transfer_config", None)
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        # By default vLLM would reserve a share of the machine's memory, as it does on a GPU.
        arguments["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
    return arguments


AgentRolloutActor = ray.remote(AgentRolloutActorBase)


@dataclass
class EngineSpec:
    """How an engine was started, so that another one can take its place."""

    handle: Any
    actor_class: Any
    arguments: dict[str, Any]

    def start(self) -> Any:
        """Start an engine of the same kind in the same place, and return it."""
        self.handle = self.actor_class.remote(**self.arguments)
        return self.handle


class _Recorder:
    """Stands in for the actor class that OpenRLHF looks up: starts our actor, and notes how.

    Args:
        arguments: of the engine, for which OpenRLHF has no parameter.
    """

    def __init__(self, actor_class: Any, arguments: dict[str, Any], specs: list[EngineSpec]) -> None:
        self._actor_class = actor_class
        self._arguments = arguments
        self._specs = specs

    def options(self, **options: Any) -> _Recorder:
        return _Recorder(self._actor_class.options(**options), self._arguments, self._specs)

    def remote(self, **arguments: Any) -> Any:
        spec = EngineSpec(None, self._actor_class, arguments | self._arguments)
        self._specs.append(spec)
        return spec.start()


def create_engines(args: Any, group: Any, *, shared: bool) -> list[EngineSpec]:
    """Call OpenRLHF's ``create_vllm_engines`` with our actor class, the run's dtype and processed log-probabilities.

    Engines start in the background, also those that are to sleep afterwards, for which OpenRLHF would wait.

    Args:
        group: placement group of the engines.
        shared: whether models are on the same GPUs.
    """
    original = vllm_engine.RolloutRayActor, vllm_engine.placement_group
    specs: list[EngineSpec] = []
    # For engines with GPUs of their own, OpenRLHF makes a group itself and waits for it without limit.
    vllm_engine.placement_group = lambda *_, **__: group
    arguments = {"dtype": _DTYPES[args.ds.param_dtype], "enable_sleep_mode": args.vllm.enable_sleep}
    route = gpu_route(args)
    if route != "openrlhf":
        arguments["weight_transfer_config"] = {"backend": route}
    vllm_engine.RolloutRayActor = _Recorder(AgentRolloutActor, arguments, specs)
    try:
        vllm_engine.create_vllm_engines(
            args.vllm.num_engines,
            args.vllm.tensor_parallel_size,
            args.actor.model_name_or_path,
            args.train.seed,
            args.train.full_determinism_enable,
            args.vllm.enable_prefix_caching,
            args.vllm.enforce_eager,
            args.data.max_len,
            group if shared else None,
            args.vllm.gpu_memory_utilization,
            False,
            "processed_logprobs",
        )
    finally:
        vllm_engine.RolloutRayActor, vllm_engine.placement_group = original
    return specs
