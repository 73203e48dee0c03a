"""Training rows that are segments of transcripts, and the same rows each as a sequence of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from openrlhf_gagpo.training.rows import OptimizerStep, TokenRow, TrainingRow
from openrlhf_gagpo.training.settings import BatchSettings

__all__ = ["CHATML", "PlannedBySequence", "apart", "merging_tokenizer", "segments"]


def segments(words: int, sizes: Sequence[int], seed: int = 0, *, longest: int = 6) -> list[TrainingRow]:
    """Random transcripts of ``sizes`` actions each, with made-up credit, of which the third repeats the second's start.

    Rows of all transcripts are mixed, and one action in the middle of the first is left out, as an estimator may do.
    """
    rng = np.random.default_rng(seed)

    def text(most: int) -> list[int]:
        return rng.integers(3, words, int(rng.integers(1, most + 1))).tolist()

    rows: list[TrainingRow] = []
    for number, size in enumerate(sizes):
        prompt = text(8)
        for step in range(size):
            response = text(longest)
            twin = next((row for row in rows if number == 2 and step == 0 and row.sequence == 1), None)
            if twin is not None:
                prompt, response = list(twin.prompt_ids), list(twin.response_ids)
            rows.append(
                TrainingRow(
                    prompt,
                    response,
                    [-1.0] * len(response),
                    float(rng.normal()),
                    f"t{number}",
                    step,
                    clip_scale=float(rng.uniform(0.5, 2)),
                    value=float(rng.normal(0, 0.1)),
                    value_target=float(rng.normal()),
                    token_values=rng.normal(0, 0.1, len(response)),
                    sequence=number,
                )
            )
            prompt = prompt + response + text(5)
    del rows[1]
    return [rows[place] for place in rng.permutation(len(rows))]


def apart(rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """The same rows, each a sequence of its own."""
    return [replace(row, sequence=None) for row in rows]


class PlannedBySequence(BatchSettings):
    """Plans rows that are sequences of their own as if they were still the segments of ``rows``."""

    rows: Sequence[TrainingRow] = ()

    def plan_training(self, rows: Sequence[TokenRow], ranks: int, seed: int) -> list[OptimizerStep]:
        assert list(rows) == apart(self.rows)
        return super().plan_training(self.rows, ranks, seed)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
"""A chat template of the common form, which opens a thinking block if it is asked to."""


def merging_tokenizer(template: str | None = CHATML) -> Any:
    """A tokenizer of bytes in which ``>`` merges with a line break and with the first byte of letters like ``ç``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(">", "Ċ"), (">", "Ã")]
    words = [*letters, *("".join(pair) for pair in merges)]
    bytewise = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    # Without a pattern that would part them.
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer
