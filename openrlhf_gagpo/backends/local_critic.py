"""The critic of the local backend: the policy's architecture with a value head, whose weights OpenRLHF can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from transformers.utils.logging import set_verbosity_error

from openrlhf_gagpo.backends.local_models import (
    add_adapters,
    build_optimizer,
    load_model,
    run_updates,
    write_model,
)
from openrlhf_gagpo.training.collate import TokenBatch, collate, per_row
from openrlhf_gagpo.training.objective import LossScale
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow, unique_rows
from openrlhf_gagpo.training.settings import BatchSettings, CriticSettings, LoraSettings
from openrlhf_gagpo.training.steps import StepLog
from openrlhf_gagpo.training.values import (
    finish_value_metrics,
    rows_to_read,
    targets_by_token,
    trained_positions,
    value_loss,
    value_positions,
    value_tensors,
)

__all__ = ["LocalCritic"]


class LocalCritic:
    """A value model with its optimizer."""

    def __init__(
        self,
        settings: CriticSettings,
        batches: BatchSettings,
        lora: LoraSettings | None,
        *,
        iterations: int,
        pad_id: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.settings = settings
        self.batches = batches
        self.pad_id = pad_id
        self.device = device
        self.autocast = autocast
        # transformers would warn that the head is missing, which is meant.
        set_verbosity_error()
        self.model = load_model(
            AutoModelForSequenceClassification, settings.model, "critic.model_name_or_path", num_labels=1
        ).to(device)
        if settings.new_head:
            # As OpenRLHF starts the head of a critic that is made from the policy's weights.
            with torch.no_grad():
                self.model.score.weight.normal_(0.0, 1 / (self.model.config.hidden_size + 1))
        self.adapters = add_adapters(self.model, lora, value_head=True)
        if settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer, self.scheduler = build_optimizer(self.model, settings.optimizer, iterations)
        self.log = StepLog("critic", "critic", settings.optimizer.max_bad_steps)

    @torch.no_grad()
    def values(self, rows: Sequence[TokenRow]) -> list[Tensor]:
        """Compute the values at the positions of every row (see ``training.values.value_positions``), in row order."""
        self.model.eval()
        unique, inverse = unique_rows(rows)
        results: list[Tensor] = [torch.empty(0)] * len(unique)
        for batch in (batch for step in self.batches.plan_forward(unique) for batch in step.shards[0]):
            chosen = [unique[row] for row in batch.rows]
            tokens = collate(chosen, pad_id=self.pad_id)
            places = value_positions(chosen, tokens)
            values = per_row(places.read(self._forward(tokens)), places.mask)
            for row, value in zip(batch.rows, values, strict=True):
                results[row] = value
        return [results[index] for index in inverse]

    def update(self, rows: Sequence[TrainingRow], seed: int) -> dict[str, float]:
        """Run one iteration of optimizer steps over rows with values and targets; returns ``critic/*`` metrics."""
        self.model.train()
        plan = self.batches.plan_training(rows, 1, seed)
        steps = run_updates(
            self.model,
            self.optimizer,
            self.scheduler,
            self.settings.optimizer.max_norm,
            plan,
            lambda batch, scale: self._loss([rows[row] for row in batch.rows], scale),
            self.log,
        )
        metrics = finish_value_metrics(self.log.totals, self.log.count)
        return metrics | {f"critic/{name}": value for name, value in steps.items()}

    def _loss(self, rows: Sequence[TrainingRow], scale: LossScale) -> tuple[Tensor, dict[str, Tensor]]:
        by_token = targets_by_token(rows)
        # Equal rows go through the model once; reading repeats the result, and its gradient adds up.
        unique, inverse = unique_rows(rows_to_read(rows, by_token=by_token))
        tokens = collate(unique, pad_id=self.pad_id)
        places = trained_positions(unique, tokens, by_token=by_token).select(torch.tensor(inverse))
        tensors = value_tensors(rows, places, by_token=by_token).to(self.device)
        return value_loss(places.read(self._forward(tokens)), tensors, scale, self.settings.value_clip)

    def _forward(self, tokens: TokenBatch) -> Tensor:
        """Compute the values (B, T-1) before tokens 1 to T-1, in float32."""
        mask = tokens.attention_mask.to(self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with self.autocast():
            hidden = self.model.base_model(
                input_ids=tokens.sequences.to(self.device), attention_mask=mask, position_ids=positions, use_cache=False
            ).last_hidden_state
            values = self.model.score(hidden)
        return values[:, :-1, 0].float()

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and schedule."""
        write_model(self.model, folder, self.adapters)
        states = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        if self.adapters is not None:
            # Drawn at the start, and not to be told from its adapter where they are merged.
            states["head"] = self.model.score.weight.detach()
        torch.save(states, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote."""
        states = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        if self.adapters is None:
            saved = load_model(AutoModelForSequenceClassification, str(folder), "ckpt.path", num_labels=1)
            self.model.load_state_dict(saved.state_dict())
        else:
            self.adapters.load(folder)
            with torch.no_grad():
                self.model.score.weight.copy_(states["head"])
        self.optimizer.load_state_dict(states["optimizer"])
        self.scheduler.load_state_dict(states["scheduler"])

    def export(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder."""
        write_model(self.model, folder, self.adapters)

    def parameters(self) -> dict[str, Tensor]:
        """Return copies of all parameters by name (for tests)."""
        return {name: p.detach().float().cpu().clone() for name, p in self.model.named_parameters()}
