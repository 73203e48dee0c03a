"""``rollout.types.Policy`` on vLLM's asynchronous engine, in whatever process has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams as VllmSamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.utils import random_uuid

from openrlhf_gagpo.rollout.types import Completion, FinishReason, Prompt, SamplingParams, Usage

__all__ = ["EnginePolicy", "final_output"]


class EnginePolicy:
    """``rollout.types.Policy`` on an asynchronous vLLM engine."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        # There is no minimum length, because it would remove the end-of-sequence token from the first position's
        # distribution, and the recorded log-probability of a one-token action would not be the policy's. There is no
        # seed, because batches depend on timing, so it would not make runs repeatable, and vLLM's CPU build fails on a
        # seeded request whose prompt it cuts in two (its generators cannot step back).
        token_ids: list[int] = []
        log_probs: list[float] = []
        cached: int | None = None

        def completion(reason: FinishReason) -> Completion:
            usage = Usage(1, len(prompt.token_ids), len(token_ids), cached or 0)
            return Completion(token_ids, log_probs, reason, usage=usage)

        while True:
            output = await self._sample([*prompt.token_ids, *token_ids], params, len(token_ids))
            answer = output.outputs[0]
            # When an answer goes on, all that was read before is in the cache.
            cached = output.num_cached_tokens if cached is None else cached
            for token, scores in zip(answer.token_ids, answer.logprobs, strict=True):
                token_ids.append(token)
                log_probs.append(scores[token].logprob)
                if params.stop is not None and params.stop.ends(token_ids):
                    # The engine stops where its own decoding shows a tag, which may be a token later.
                    return completion("stop")
            # A closing tag has stopped the engine that ends no action, such as one within thinking; the answer goes on.
            if not isinstance(answer.stop_reason, str):
                return completion("length" if answer.finish_reason == "length" else "stop")
            if len(token_ids) == params.max_new_tokens:
                return completion("length")

    async def _sample(self, token_ids: list[int], params: SamplingParams, used: int) -> Any:
        """Return the engine's output for an answer of which ``used`` tokens are known."""
        return await final_output(
            self.llm,
            token_ids,
            VllmSamplingParams(
                max_tokens=params.max_new_tokens - used,
                temperature=params.temperature,
                top_p=params.top_p,
                logprobs=0,
                stop=params.stop and params.stop.closing_tags,
                include_stop_str_in_output=params.stop is not None,
                detokenize=params.stop is not None,
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
        )


async def final_output(llm: Any, prompt_ids: Sequence[int], params: VllmSamplingParams) -> Any:
    """Return the engine's output for one prompt when it is complete."""
    final = None
    async for output in llm.generate(TokensPrompt(prompt_token_ids=list(prompt_ids)), params, request_id=random_uuid()):
        final = output
    return final
