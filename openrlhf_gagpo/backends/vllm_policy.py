"""``rollout.types.Policy`` on vLLM's asynchronous engine, in whatever process has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams as VllmSamplingParams
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.utils import random_uuid

from openrlhf_gagpo.rollout.types import Completion, Prompt, SamplingParams

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
        output = await final_output(
            self.llm,
            prompt.token_ids,
            VllmSamplingParams(
                max_tokens=params.max_new_tokens,
                temperature=params.temperature,
                top_p=params.top_p,
                logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
        )
        completion = output.outputs[0]
        token_ids = list(completion.token_ids)
        log_probs = [scores[token].logprob for token, scores in zip(token_ids, completion.logprobs, strict=True)]
        return Completion(token_ids, log_probs, "length" if completion.finish_reason == "length" else "stop")


async def final_output(llm: Any, prompt_ids: Sequence[int], params: VllmSamplingParams) -> Any:
    """Return the engine's output for one prompt when it is complete."""
    final = None
    async for output in llm.generate(TokensPrompt(prompt_token_ids=list(prompt_ids)), params, request_id=random_uuid()):
        final = output
    return final
