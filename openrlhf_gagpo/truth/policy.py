"""The weights that played a recorded iteration, found in the run folder and checked against what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from openrlhf_gagpo.backends.local_models import load_model
from openrlhf_gagpo.config.resolve import Config
from openrlhf_gagpo.credit.sets import Floats
from openrlhf_gagpo.errors import ConfigError, RunError
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.collate import collate
from openrlhf_gagpo.training.rows import TokenRow, unique_rows
from openrlhf_gagpo.training.token_scores import log_probs_of

__all__ = ["LoadedPolicy", "load_policy", "load_tokenizer"]

_TOLERANCE = 1e-3
"""Largest difference between a recorded log-probability and the model's own."""
_ROWS = 256
"""Rows that go through the model together."""


@dataclass(frozen=True)
class LoadedPolicy:
    """A model with its tokenizer and the temperature that it was sampled at."""

    model: Any
    tokenizer: Any
    temperature: float
    param_dtype: str

    @property
    def autocast(self) -> torch.autocast:
        """The context of passes in the run's precision."""
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.param_dtype == "bf16")

    @property
    def eos_ids(self) -> list[int]:
        """All tokens that end a response, as the sampler knows them."""
        configured = self.model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        return [token for token in {*configured, self.tokenizer.eos_token_id} if token is not None]

    def check_played(self, rows: Sequence[TokenRow], title: str) -> None:
        """Raise ``ConfigError`` unless the recorded log-probabilities are this model's."""
        worst = 0.0
        unique, _ = unique_rows(rows)
        with torch.inference_mode():
            for start in range(0, len(unique), _ROWS):
                batch = unique[start : start + _ROWS]
                values, mask = self._log_probs(batch)
                for row, value, kept in zip(batch, values, mask, strict=True):
                    recorded = torch.tensor(row.sampling_log_probs)
                    worst = max(worst, float((value[kept].cpu() - recorded).abs().max()))
        if not worst <= _TOLERANCE:
            raise ConfigError(
                f"the model did not play {title}: a recorded log-probability differs from its own by {worst:.2g}, and "
                f"{_TOLERANCE:g} is allowed; give the weights from before that iteration's update with --model"
            )

    def gradients(self, rows: Sequence[TokenRow], weights: Floats) -> Floats:
        """Compute the policy gradient under each column of weights.

        Args:
            weights: (N, K), one advantage per row and column.

        Returns:
            (K, K) inner products of the gradients of ``sum_i weights[i, k] * log p(response_i | prompt_i)``, all
            parameters together.
        """
        unique, inverse = unique_rows(rows)
        # Equal rows have equal gradients, so their weights add up.
        summed = torch.zeros(len(unique), weights.shape[1], dtype=torch.float64)
        summed.index_add_(0, torch.tensor(inverse), torch.from_numpy(weights))
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        totals = torch.zeros(weights.shape[1], sum(p.numel() for p in parameters), dtype=torch.float64)
        for start in range(0, len(unique), _ROWS):
            values, mask = self._log_probs(unique[start : start + _ROWS])
            log_probs = (values * mask).sum(-1)
            for column in range(weights.shape[1]):
                factor = summed[start : start + _ROWS, column].to(log_probs.device, log_probs.dtype)
                found = torch.autograd.grad(
                    (factor * log_probs).sum(), parameters, retain_graph=True, allow_unused=True
                )
                flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
                totals[column] += torch.cat([g.reshape(-1).double().cpu() for g in flat])
        products: Floats = (totals @ totals.T).numpy()
        return products

    def _log_probs(self, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor]:
        """Return the (B, A) log-probabilities of the rows' responses, and their mask."""
        tokens = collate(rows, pad_id=self.tokenizer.pad_token_id or 0)
        device = next(self.model.parameters()).device
        mask = tokens.attention_mask.to(device)
        sequences = tokens.sequences.to(device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with self.autocast:
            logits = self.model(
                input_ids=sequences, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits[:, :-1]
        log_probs = log_probs_of(logits, sequences[:, 1:], self.temperature)
        return tokens.responses.read(log_probs), tokens.responses.mask.to(device).bool()


def load_policy(run: RunFolder, config: Config, iteration: int, given: Path | None) -> LoadedPolicy:
    """Load the weights that played ``iteration``, onto the CPU.

    Args:
        given: their folder; without one, the run's checkpoint or, for the first iteration, the start model.

    Raises:
        ConfigError: the run has no checkpoint from before the iteration.
        RunError: model or tokenizer cannot be loaded.
    """
    disable_progress_bar()
    folder = str(given or _folder(run, config, iteration) or config.actor.model_name_or_path)
    tokenizer = load_tokenizer(config)
    model = load_model(AutoModelForCausalLM, folder, "model")
    return LoadedPolicy(model, tokenizer, config.rollout.temperature, config.ds.param_dtype)


def load_tokenizer(config: Config) -> Any:
    """Load the tokenizer of a run, which is its start model's. Raises ``RunError`` if there is none."""
    start = config.actor.model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            start, trust_remote_code=True, use_fast=not config.data.disable_fast_tokenizer
        )
    except (OSError, ValueError) as error:
        raise RunError(f"the tokenizer of {start} cannot be loaded; put the run's start model back there") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _folder(run: RunFolder, config: Config, iteration: int) -> Path | None:
    """Return the checkpoint that played ``iteration``, or None for the start model."""
    if iteration == 1:
        return None
    tag = f"global_step{iteration - 1}"
    # The run's own folder first, because it may have been moved since.
    for root in (run.checkpoints_dir, Path(config.ckpt.path)):
        if (root / tag / "config.json").is_file():
            return root / tag
    raise ConfigError(
        f"{run.path} has no weights from before iteration {iteration} (checkpoints/{tag}); take --iteration 1, name "
        "their folder with --model, or train with --ckpt.save_steps 1 and a --ckpt.max_num that keeps them"
    )
