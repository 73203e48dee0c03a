"""Measure the memory of logits in a training pass: the most bytes of live tensors from forward pass to gradient.

The model is tiny but for its vocabulary, so that logits are nearly all that takes memory. Bytes are those that torch's
allocator hands out, temporary tensors inside of operations included, and are given as multiples of the float32 logits
at the response tokens. ``everywhere`` makes the logits of all positions with torch's own operations, as a trainer does
that does not choose positions; on one row, since four would not fit. Numbers and gradients are compared with it first.

Run: ``python benchmarks/logits.py --out benchmarks/results/logits.json`` (needs 12 GiB of memory).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from openrlhf_gagpo.backends.response_pass import response_pass
from openrlhf_gagpo.training.rows import TokenRow
from openrlhf_gagpo.training.token_scores import Reading

TEMPERATURE = 0.9


def peak_bytes(work: Callable[[], object]) -> int:
    """Return by how many bytes the tensors of this process grew at most during ``work`` (on a CPU)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def make_model(words: int, hidden: int, length: int) -> Qwen2ForCausalLM:
    """Return a random model of one layer."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=words, hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=length, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).train()


def make_rows(count: int, prompt: int, response: int, words: int) -> list[TokenRow]:
    """Return rows of random tokens."""
    ids = torch.randint(words, (count, prompt + response), generator=torch.Generator().manual_seed(1)).tolist()
    return [TokenRow(row[:prompt], row[prompt:], []) for row in ids]


def chosen(model: Any, rows: Sequence[TokenRow], reading: Reading) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (B, R) and entropies as the trainer computes them."""
    output = response_pass(model, rows, 0, reading)
    return output.log_probs, output.entropy


def everywhere(model: Any, rows: Sequence[TokenRow], reading: Reading) -> tuple[Tensor, Tensor | None]:
    """The same from the logits of all positions, for rows of equal lengths."""
    ids = torch.tensor([row.prompt_ids + row.response_ids for row in rows])
    size = len(rows[0].response_ids)
    every = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float() / reading.temperature, -1)
    log_probs = every[:, :-1].gather(-1, ids[:, 1:, None])[..., 0][:, -size:]
    entropy = -(every.exp() * every).sum(-1)[:, -size - 1 : -1] if reading.entropy else None
    return log_probs, entropy


def step(make: Callable[..., tuple[Tensor, Tensor | None]], model: Any, *arguments: Any) -> Tensor:
    """Compute a loss and its gradient; return the log-probabilities."""
    model.zero_grad(set_to_none=True)
    log_probs, entropy = make(model, *arguments)
    weights = torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs) / log_probs.numel()
    loss = (log_probs * weights).sum()
    if entropy is not None:
        loss = loss - 0.01 * entropy.mean()
    loss.backward()
    return log_probs.detach()


def largest_differences(model: Any, rows: Sequence[TokenRow], readings: Sequence[Reading]) -> dict[str, float]:
    """Return by how much log-probabilities and gradients differ from those of ``everywhere``."""
    found = {"log_prob": 0.0, "gradient": 0.0}
    for reading in readings:
        wanted = step(everywhere, model, rows, reading)
        gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
        values = step(chosen, model, rows, reading)
        found["log_prob"] = max(found["log_prob"], (values - wanted).abs().max().item())
        for name, p in model.named_parameters():
            found["gradient"] = max(found["gradient"], (p.grad - gradient[name]).abs().max().item())
    return found


def measure(words: int, hidden: int, count: int, prompt: int, response: int, chunk: int) -> dict[str, Any]:
    """Return the report."""
    model = make_model(words, hidden, prompt + response)
    rows = make_rows(count, prompt, response, words)
    readings = [Reading(TEMPERATURE, entropy, size) for entropy in (False, True) for size in (0, chunk)]
    report: dict[str, Any] = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "words": words, "hidden": hidden, "rows": count, "tokens_per_row": prompt + response,
        "response_tokens_per_row": response,
        "response_logits_bytes": 4 * count * response * words,
        "largest_difference": largest_differences(model, rows[:1], readings),
        "passes": [],
    }  # fmt: skip
    for make, given, settings in (
        *((everywhere, rows[:1], reading) for reading in readings[::2]),
        *((chosen, rows, reading) for reading in readings),
    ):
        model.zero_grad(set_to_none=True)
        started = time.process_time()
        peak = peak_bytes(lambda make=make, given=given, settings=settings: step(make, model, given, settings))
        seconds = time.process_time() - started
        tokens = len(given) * response
        report["passes"].append(
            {
                "positions": "responses" if make is chosen else "all",
                "rows": len(given),
                "entropy": settings.entropy,
                "chunk": settings.chunk,
                "peak_bytes": peak,
                "of_response_logits": round(peak / (4 * tokens * words), 3),
                "of_all_logits": round(peak / (4 * len(given) * (prompt + response) * words), 3),
                "cpu_seconds_per_row": round(seconds / len(given), 2),
            }
        )
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--words", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--response", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    report = measure(given.words, given.hidden, given.rows, given.prompt, given.response, given.chunk)
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"largest differences {report['largest_difference']}\n")
    for line in report["passes"]:
        sys.stdout.write(
            f"{line['positions']:9} rows {line['rows']}  entropy {line['entropy']!s:5}  chunk {line['chunk']:5}  peak "
            f"{line['peak_bytes'] / 2**30:6.2f} GiB  {line['of_response_logits']:6.2f} x response logits  "
            f"{line['of_all_logits']:5.2f} x all logits  {line['cpu_seconds_per_row']:6.1f} CPU s per row\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
