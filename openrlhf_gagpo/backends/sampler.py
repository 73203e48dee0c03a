"""In-process generation, which batches the turns of concurrent episodes through transformers with a KV cache."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openrlhf_gagpo.backends.sequence_pool import SequencePool
from openrlhf_gagpo.rollout.types import Completion, FinishReason, Prompt, SamplingParams

__all__ = ["BatchSampler", "generate_batch"]


@dataclass
class _Turn:
    prompt_ids: Sequence[int]
    params: SamplingParams
    result: asyncio.Future[Completion]


class BatchSampler:
    """``rollout.types.Policy`` on a model in this process.

    A batch starts when every running episode waits for a turn, so batches are as large as possible and the same in
    every run. (There is only one process, so starting earlier would only make batches smaller.) Every generation draws
    from its own random stream, seeded by the request.
    """

    def __init__(self, model: Any, eos_ids: Sequence[int], pad_id: int, max_batch: int = 256) -> None:
        self.eos_ids = eos_ids
        self.max_batch = max_batch
        self._pool = SequencePool(model, pad_id)
        self._waiting: list[_Turn] = []
        self._unfinished = 0
        self._concurrency = 1
        self._sampled_by = ""

    def begin(self, episodes: int, concurrency: int, sampled_by: str = "") -> None:
        """Announce how many episodes will be played, and how many of them at a time.

        Args:
            sampled_by: what every completion gets as ``Completion.sampled_by``.
        """
        self._waiting.clear()
        self._pool.clear()
        self._unfinished = episodes
        self._concurrency = concurrency
        self._sampled_by = sampled_by

    def episode_done(self) -> None:
        """Note that an episode has ended and will request no more turns."""
        self._unfinished -= 1
        if not self._unfinished:
            self._pool.clear()
        self._run_when_ready()

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        turn = _Turn(prompt.token_ids, params, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._run_when_ready()
        return await turn.result

    def _run_when_ready(self) -> None:
        if not self._waiting or len(self._waiting) < min(self._unfinished, self._concurrency):
            return
        turns, self._waiting = self._waiting, []
        for start in range(0, len(turns), self.max_batch):
            batch = turns[start : start + self.max_batch]
            completions = generate_batch(batch, self.eos_ids, self._pool, self._sampled_by)
            for turn, completion in zip(batch, completions, strict=True):
                turn.result.set_result(completion)


@torch.inference_mode()
def generate_batch(
    turns: Sequence[_Turn], eos_ids: Sequence[int], pool: SequencePool, sampled_by: str = ""
) -> list[Completion]:
    """Sample one completion per turn with the model of ``pool``; every one gets ``sampled_by``."""
    uniforms = [random.Random(turn.params.seed) for turn in turns]
    tokens: list[list[int]] = [[] for _ in turns]
    log_probs: list[list[float]] = [[] for _ in turns]
    reasons: list[FinishReason] = ["length"] * len(turns)
    alive = list(range(len(turns)))
    places = pool.read([turn.prompt_ids for turn in turns])
    while alive:
        params = [turns[turn].params for turn in alive]
        draws = [uniforms[turn].random() for turn in alive]
        chosen, scores = _sample(pool.logits(places), params, draws)
        keep, longer = [], []
        for turn, place, token, score in zip(alive, places, chosen.tolist(), scores.tolist(), strict=True):
            tokens[turn].append(token)
            log_probs[turn].append(score)
            stop = turns[turn].params.stop
            if token in eos_ids or (stop is not None and stop.ends(tokens[turn])):
                reasons[turn] = "stop"
            elif len(tokens[turn]) < turns[turn].params.max_new_tokens:
                keep.append(turn)
                longer.append((place, token))
        alive, places = keep, pool.extend(longer)
    return [
        Completion(ids, scores, reason, sampled_by=sampled_by)
        for ids, scores, reason in zip(tokens, log_probs, reasons, strict=True)
    ]


def _sample(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Sample by inverse CDF, (R, V) -> chosen ids (R,) and their log-probs (R,) under the sampling distribution."""
    temperature = torch.tensor([p.temperature for p in params], device=logits.device).clamp(min=1e-6)
    log_probs = torch.log_softmax(logits.float() / temperature[:, None], dim=-1)
    if any(p.top_p < 1 for p in params):
        top_p = torch.tensor([p.top_p for p in params], device=logits.device)
        ordered, order = log_probs.sort(dim=-1, descending=True)
        # A token stays while the mass before it is below top_p, so the most likely one always stays.
        before = ordered.exp().cumsum(-1) - ordered.exp()
        dropped = torch.zeros_like(ordered, dtype=torch.bool).scatter(-1, order, before >= top_p[:, None])
        log_probs = torch.log_softmax(log_probs.masked_fill(dropped, float("-inf")), dim=-1)
    cumulative = log_probs.double().exp().cumsum(-1)
    target = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return chosen.squeeze(-1), log_probs.gather(-1, chosen).squeeze(-1)
