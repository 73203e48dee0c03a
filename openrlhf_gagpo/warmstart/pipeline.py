"""The steps from an environment to a saved model folder: play, tokenise, clone, save."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from agent_envs.base import TextEnv
from openrlhf_gagpo.errors import PromptTooLong, WarmstartError
from openrlhf_gagpo.files import write_atomic
from openrlhf_gagpo.rollout.player import prompt_builder
from openrlhf_gagpo.warmstart.clone import build_model, clone
from openrlhf_gagpo.warmstart.demonstrations import encode, play, texts
from openrlhf_gagpo.warmstart.settings import WarmstartSettings
from openrlhf_gagpo.warmstart.success import Success
from openrlhf_gagpo.warmstart.tokenizer import build_tokenizer

__all__ = ["SETTINGS_FILE", "WarmstartSummary", "warm_start", "write_record"]

SETTINGS_FILE = "warmstart.json"


@dataclass(frozen=True)
class WarmstartSummary:
    """The result of a warm start."""

    parameters: int
    vocabulary: int
    episodes: int
    demonstrator_success: float
    """Share of the noisy demonstrations that succeeded, in [0, 1]."""
    examples: int
    longest_prompt: int
    """Tokens."""
    longest_answer: int
    """Tokens, end-of-sequence included."""
    loss: float
    token_accuracy: float


def warm_start(
    settings: WarmstartSettings,
    env: TextEnv,
    say: Callable[[str], None],
    on_step: Callable[[int, int], None] | None = None,
) -> WarmstartSummary:
    """Clone noisy-expert episodes of ``env`` and save model, tokenizer and ``warmstart.json`` to ``settings.out``.

    No file is written before training has finished. ``say`` is called with one line per stage, ``on_step`` with the
    optimizer steps taken and to take. Raises ``WarmstartError`` for prompts that do not fit.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise WarmstartError("--device cuda was given, but PyTorch sees no CUDA device; use --device cpu.")
    torch.set_num_threads(settings.threads)
    episodes = list(
        play(env, split=settings.split, episodes=settings.episodes, noise=settings.noise, seed=settings.seed)
    )

    prompts = partial(prompt_builder, settings.rollout(), template=env.prompt)
    try:
        # A word-level tokenizer without words splits text like the final one, so both fit the same history.
        tokenizer = build_tokenizer(texts(episodes, prompts(build_tokenizer([]))))
        sequences = encode(episodes, prompts(tokenizer), tokenizer)
    except PromptTooLong as error:
        fewer = "" if settings.context == "transcript" else " or lower --rollout.history_length"
        raise WarmstartError(f"A prompt does not fit ({error}); raise --max_positions{fewer}.") from error
    examples = [example for steps in sequences for example in steps]
    success = sum(episode.success for episode in episodes) / len(episodes)
    say(
        f"{len(examples)} demonstrated steps from {len(episodes)} episodes ({success:.0%} of them successful), "
        f"{len(tokenizer)} words"
    )

    model = build_model(settings, tokenizer)
    say(f"{model.num_parameters()} parameters")
    result = clone(model, sequences, settings, on_step)
    say(f"final loss {result.loss:.4f}, token accuracy {result.token_accuracy:.3f}")

    summary = WarmstartSummary(
        parameters=model.num_parameters(),
        vocabulary=len(tokenizer),
        episodes=len(episodes),
        demonstrator_success=success,
        examples=len(examples),
        longest_prompt=max(len(example.prompt_ids) for example in examples),
        longest_answer=max(len(example.response_ids) for example in examples),
        loss=result.loss,
        token_accuracy=result.token_accuracy,
    )
    model.save_pretrained(settings.out)
    tokenizer.save_pretrained(settings.out)
    write_record(settings, summary)
    say(f"saved to {settings.out}")
    return summary


def write_record(settings: WarmstartSettings, summary: WarmstartSummary, success: Sequence[Success] = ()) -> None:
    """Write ``warmstart.json``, with the model's success if it was measured."""
    record: dict[str, object] = {"settings": settings.to_dict(), "summary": asdict(summary)}
    if success:
        record["success"] = [one.to_dict() for one in success]
    write_atomic(settings.out / SETTINGS_FILE, json.dumps(record, indent=2) + "\n")
