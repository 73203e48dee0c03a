"""Models, optimizers and weight files of the local backend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor
from transformers import get_scheduler

from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.training.schedule import offset_warmup
from openrlhf_gagpo.training.settings import OptimizerSettings

__all__ = ["build_optimizer", "load_model", "write_model"]

# Parameters without weight decay, by name, as in OpenRLHF's optimizer groups.
_NO_DECAY = ("bias", "layer_norm.weight", "layernorm.weight", "norm.weight", "ln_f.weight")


def load_model(cls: Any, path: str, flag: str, **arguments: Any) -> Any:
    """Load a model in float32 with one of transformers' auto classes, ready for evaluation.

    Args:
        flag: names the path in the message if it cannot be loaded.

    Raises:
        RunError: the weights do not fit or cannot be read.
    """
    try:
        model = cls.from_pretrained(
            path, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=True, **arguments
        )
    except (OSError, ValueError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[0].rstrip(".")
        raise RunError(f"the model {path} cannot be loaded: {cause}; check --{flag}") from error
    return model.eval()


def write_model(model: Any, folder: Path) -> None:
    """Write a Hugging Face folder like ``save_pretrained``, which would import DeepSpeed if it is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})


def build_optimizer(model: Any, settings: OptimizerSettings, iterations: int) -> tuple[torch.optim.AdamW, Any]:
    """Build AdamW and a schedule over iterations, with OpenRLHF's parameter groups."""

    def parameters(decayed: bool) -> Iterator[Tensor]:
        for name, parameter in model.named_parameters():
            if any(part in name for part in _NO_DECAY) != decayed:
                yield parameter

    groups = [
        {"params": list(parameters(True)), "weight_decay": settings.weight_decay},
        {"params": list(parameters(False)), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    has_floor = settings.scheduler in ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
    scheduler = get_scheduler(
        settings.scheduler,
        optimizer,
        num_warmup_steps=math.ceil(iterations * settings.warmup_ratio),
        num_training_steps=iterations,
        scheduler_specific_kwargs={"min_lr_rate": settings.min_lr_ratio} if has_floor else {},
    )
    offset_warmup(scheduler, settings.warmup_ratio)
    return optimizer, scheduler
