"""Behaviour cloning of a tiny Qwen3 with the transformers Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from openrlhf_gagpo.warmstart.demonstrations import Example
from openrlhf_gagpo.warmstart.settings import WarmstartSettings

__all__ = ["Score", "build_model", "clone", "collate", "score"]

IGNORED = -100
_SCORED_ROWS = 2048


@dataclass(frozen=True)
class Score:
    """How well a model predicts demonstrated responses, over response tokens (including end-of-sequence)."""

    loss: float
    """Mean cross-entropy in nats."""
    token_accuracy: float
    """Share of tokens that the model finds most probable, in [0, 1]; noisy labels keep it below 1."""


def build_model(settings: WarmstartSettings, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Build a randomly initialised fp32 Qwen3 with a tied head; about 109,000 parameters with default ``settings``.

    It is not a Qwen2, because transformers 5 loads every tokenizer next to a Qwen2 model as a byte-pair one.
    """
    set_seed(settings.seed)
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=settings.hidden // settings.heads,
        max_position_embeddings=settings.max_positions,
        # Variance 1 / fan-in; the usual 0.02 is meant for far wider networks and makes these activations tiny.
        initializer_range=settings.hidden**-0.5,
        tie_word_embeddings=True,
        **special,
    )
    model = Qwen3ForCausalLM(config).float()
    model.generation_config = GenerationConfig(**special)
    return model


class _Rows(Dataset[Sequence[Example]]):
    def __init__(self, sequences: Sequence[Sequence[Example]]) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> Sequence[Example]:
        return self._sequences[index]


def collate(sequences: Sequence[Sequence[Example]], pad_id: int) -> dict[str, torch.Tensor]:
    """Build ``input_ids`` and ``labels``, [rows, longest row] int64, padded on the right; labels only on responses.

    Args:
        sequences: a row each, as the steps that share it, the longest last.

    There is no attention mask, because under causal attention no token sees the padding on its right, and without a
    mask the faster causal kernels apply.
    """
    ids = [torch.tensor(steps[-1].prompt_ids + steps[-1].response_ids) for steps in sequences]
    labels = [torch.full_like(row, IGNORED) for row in ids]
    for row, steps in zip(labels, sequences, strict=True):
        for step in steps:
            start = len(step.prompt_ids)
            row[start : start + len(step.response_ids)] = torch.tensor(step.response_ids)
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


class _Steps(TrainerCallback):
    """Says how far training is."""

    def __init__(self, on_step: Callable[[int, int], None]) -> None:
        self._on_step = on_step

    def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        self._on_step(state.global_step, state.max_steps)


def clone(
    model: Qwen3ForCausalLM,
    sequences: Sequence[Sequence[Example]],
    settings: WarmstartSettings,
    on_step: Callable[[int, int], None] | None = None,
) -> Score:
    """Train ``model`` in place on ``sequences`` (cosine schedule, AdamW) and score it on an even sample of them.

    Args:
        on_step: called after every optimizer step with the steps taken and the steps to take.
    """
    disable_progress_bar()
    pad_id = model.config.pad_token_id
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=settings.batch_size,
            num_train_epochs=settings.epochs,
            max_steps=settings.steps or -1,
            learning_rate=settings.lr,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            weight_decay=0.0,
            max_grad_norm=1.0,
            seed=settings.seed,
            data_seed=settings.seed,
            use_cpu=settings.device == "cpu",
            remove_unused_columns=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_steps=100,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_Rows(sequences),
            data_collator=lambda rows: collate(rows, pad_id),
            callbacks=[] if on_step is None else [_Steps(on_step)],
        )
        trainer.train()
    return score(model, sequences[:: -(-len(sequences) // _SCORED_ROWS)], batch_size=settings.batch_size)


@torch.no_grad()
def score(model: Qwen3ForCausalLM, sequences: Sequence[Sequence[Example]], *, batch_size: int) -> Score:
    """Compute the ``Score`` of ``model`` on ``sequences``, and leave the model in evaluation mode."""
    model.eval()
    loss, correct, count = 0.0, 0, 0
    for start in range(0, len(sequences), batch_size):
        batch = collate(sequences[start : start + batch_size], model.config.pad_token_id)
        labels = batch["labels"][:, 1:].to(model.device)
        logits = model(input_ids=batch["input_ids"].to(model.device)).logits[:, :-1].float()
        answered = labels != IGNORED
        loss += cross_entropy(logits[answered], labels[answered], reduction="sum").item()
        correct += int((logits[answered].argmax(-1) == labels[answered]).sum())
        count += int(answered.sum())
    return Score(loss / count, correct / count)
