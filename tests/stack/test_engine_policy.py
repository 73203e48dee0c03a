"""What the policy on vLLM's engine makes of stop strings, with a made-up engine in place of a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf_gagpo.rollout.stopping import StopRule
from openrlhf_gagpo.rollout.types import Completion, Prompt, SamplingParams, Usage

PIECES = ["<action>", "go", "</act", "ion>\nx", "<think>", "</think>", " ", "<eos>"]
EOS = len(PIECES) - 1
ENDS = [
    # No tag; one tag; a tag within thinking, then one that counts; the same up to the limit.
    ([1, 6, EOS], [1, 6, EOS], "stop"),
    ([0, 1, 2, 3, 6, EOS], [0, 1, 2, 3], "stop"),
    ([4, 0, 1, 2, 3, 5, 0, 1, 2, 3, 6], [4, 0, 1, 2, 3, 5, 0, 1, 2, 3], "stop"),
    ([4, 0, 1, 2, 3, 6, 6, 6, 6, 6, 6, 6], [4, 0, 1, 2, 3, 6, 6, 6, 6, 6, 6], "length"),
    ([4, 6, 6, 6, 6, 6, 6, 0, 1, 2, 3, 6], [4, 6, 6, 6, 6, 6, 6, 0, 1, 2, 3], "length"),
]


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[token] for token in ids if token != EOS)


class Engine:
    """Answers with scripted ids, and stops as vLLM does: at a tag in the text, perhaps a token late."""

    def __init__(self, script: Sequence[int], late: int) -> None:
        self.script, self.late = script, late
        self.asked: list[Any] = []

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
        self.asked.append(params)
        rest = list(self.script[len(prompt["prompt_token_ids"]) - 2 :])[: params.max_tokens]
        ids, finish, reason = rest, "length", None
        for count in range(1, len(rest) + 1):
            found = next((tag for tag in params.stop if tag in decode(rest[:count])), None)
            if found or rest[count - 1] == EOS:
                ids, finish, reason = rest[: count + self.late * bool(found)], "stop", found
                break
        scores = [{token: SimpleNamespace(logprob=-float(token))} for token in ids]
        answer = SimpleNamespace(token_ids=ids, logprobs=scores, finish_reason=finish, stop_reason=reason)
        # The second time all but the last token is known.
        cached = 0 if len(self.asked) == 1 else len(prompt["prompt_token_ids"]) - 1
        yield SimpleNamespace(outputs=[answer], num_cached_tokens=cached)


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize(("script", "expected", "reason"), ENDS)
def test_an_answer_ends_where_the_rule_says(script: list[int], expected: list[int], reason: str, late: int) -> None:
    from openrlhf_gagpo.backends.vllm_policy import EnginePolicy

    engine = Engine(script, late)
    params = SamplingParams(11, stop=StopRule(("action",), decode))
    found = asyncio.run(EnginePolicy(engine).generate(Prompt([8, 9], "", []), params))
    usage = Usage(1, 2, len(expected), 0)
    assert found == Completion(expected, [-float(token) for token in expected], reason, usage=usage)
    assert all(asked.include_stop_str_in_output and asked.detokenize for asked in engine.asked)


def test_without_a_rule_the_engine_decodes_nothing() -> None:
    from openrlhf_gagpo.backends.vllm_policy import EnginePolicy

    engine = Engine(ENDS[1][0], 0)
    found = asyncio.run(EnginePolicy(engine).generate(Prompt([8, 9], "", []), SamplingParams(11)))
    assert found.token_ids == ENDS[1][0]
    assert [(asked.stop, asked.detokenize) for asked in engine.asked] == [([], False)]
