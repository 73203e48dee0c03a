"""Models, optimizers and weight files of the local backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DynamicCache, get_scheduler
from transformers.cache_utils import DynamicLayer

from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.training.objective import LossScale, add_sums, read_sums
from openrlhf_gagpo.training.rows import MicroBatch, OptimizerStep
from openrlhf_gagpo.training.schedule import offset_warmup
from openrlhf_gagpo.training.settings import LoraSettings, OptimizerSettings
from openrlhf_gagpo.training.steps import StepLog

if TYPE_CHECKING:
    from openrlhf_gagpo.backends.adapters import Adapters

__all__ = [
    "add_adapters",
    "build_optimizer",
    "eos_ids",
    "keeps_every_token",
    "load_model",
    "run_updates",
    "write_model",
]

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


def keeps_every_token(model: Any) -> bool:
    """Return whether every layer of the model caches keys and values of every token, and nothing else.

    Layers with a sliding window, in which padding takes up room, and those with a recurrent state do not.
    """
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return all end-of-sequence ids that vLLM uses: those of the generation config and of the tokenizer."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return [token for token in {*configured, tokenizer.eos_token_id} if token is not None]


def add_adapters(model: Any, settings: LoraSettings | None, *, value_head: bool = False) -> Adapters | None:
    """Give ``model`` the adapters that are asked for (see ``Adapters.put_on``); None without any."""
    if settings is None:
        return None
    # Imported here, because only these runs need peft.
    from openrlhf_gagpo.backends.adapters import Adapters

    return Adapters.put_on(model, settings, value_head=value_head)


def write_model(model: Any, folder: Path, adapters: Adapters | None = None) -> None:
    """Write a Hugging Face folder like ``save_pretrained``, which would import DeepSpeed if it is installed.

    A tied weight is written once, under the name that other programs read: vLLM passes over the output layer of a model
    with tied embeddings, and would leave the embedding as it was drawn.

    Args:
        adapters: those of the model, which are merged into the weights, and written as they are (``Adapters.save``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = model.state_dict() if adapters is None else adapters.state()
    weights = {name: tensor.contiguous() for name, tensor in state.items() if name not in tied}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    if adapters is not None:
        adapters.save(folder)


def build_optimizer(model: Any, settings: OptimizerSettings, iterations: int) -> tuple[torch.optim.AdamW, Any]:
    """Build AdamW over what is trained and a schedule over iterations, with OpenRLHF's parameter groups."""

    def parameters(decayed: bool) -> Iterator[Tensor]:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and any(part in name for part in _NO_DECAY) != decayed:
                yield parameter

    groups = [
        {"params": list(parameters(True)), "weight_decay": settings.weight_decay},
        {"params": list(parameters(False)), "weight_decay": 0.0},
    ]
    # Fused, because a loop in Python over the many small parameters of a tiny model is slow.
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
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


def run_updates(
    model: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    max_norm: float,
    plan: Sequence[OptimizerStep],
    loss_of: Callable[[MicroBatch, LossScale], tuple[Tensor, Mapping[str, Tensor]]],
    log: StepLog,
) -> dict[str, float]:
    """Run every planned step once, then advance the learning-rate schedule by one.

    Args:
        max_norm: gradient norm above which gradients are scaled down; 0 for never.
        loss_of: computes the loss of a micro-batch and sums for the metrics.
        log: is begun anew and then holds what came of the steps.

    Returns:
        ``lr`` and the metrics of ``log``.

    Raises:
        DivergenceError: too many steps in a row had a gradient that is not finite.
    """
    log.begin()
    learning_rate = scheduler.get_last_lr()[0]
    for step in plan:
        scale = LossScale(step.row_normalizer, step.token_normalizer)
        sums: dict[str, Tensor] = {}
        for batch in step.shards[0]:
            loss, part = loss_of(batch, scale)
            loss.backward()
            add_sums(sums, part)
        limit = max_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit))
        finite = math.isfinite(norm)
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.end_step(read_sums(sums), norm if finite else None)
    if not log.count:
        # Moves nothing without gradients, but the schedule complains unless the optimizer has stepped before it.
        optimizer.step()
    scheduler.step()
    return {"lr": learning_rate, **log.metrics()}
