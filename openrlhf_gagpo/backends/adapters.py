"""Adapters (LoRA) as peft makes them: merged into plain weights for samplers and model folders, and saved as they are.

Nothing is merged in place: in 16 bits, taking an adapter off again would not give the base's weights back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.training.settings import LoraSettings

__all__ = ["Adapters", "MergedWeight"]

_FOLDER = "adapter"
_FILE = "adapter_model.safetensors"
"""peft's name of the weights."""

_EVERYTHING = "all-linear"
"""peft's word for all linear layers but the output layer."""


class MergedWeight:
    """A weight of the model without adapters, made when it is read, so that one at a time takes memory."""

    requires_grad = False

    def __init__(self, base: Tensor, layer: LoraLayer | None) -> None:
        self._base = base
        self._layer = layer
        """The layer whose adapter changes the weight; None if none does."""

    @property
    def shape(self) -> torch.Size:
        """The weight's shape."""
        return self._base.shape

    @property
    def dtype(self) -> torch.dtype:
        """The weight's number format, to which the sum in float32 is rounded."""
        return self._base.dtype

    @property
    def data(self) -> Tensor:
        """The weight without gradient."""
        base = self._base.detach()
        if self._layer is None:
            return base
        with torch.no_grad():
            total = base.float()
            for name in self._layer.active_adapters:
                total = total + self._layer.get_delta_weight(name).float()
        return total.to(base.dtype)


class Adapters:
    """The adapters of a model, and the model as it is with them merged."""

    def __init__(self, wrapped: PeftModel) -> None:
        self._wrapped = wrapped
        self._model: Any = wrapped.get_base_model()
        self._layers = {name: part for name, part in self._model.named_modules() if isinstance(part, LoraLayer)}

    @classmethod
    def put_on(cls, model: Any, settings: LoraSettings, *, value_head: bool = False) -> Adapters:
        """Give layers of ``model`` adapters, which are then all that is trained.

        The model itself is changed: it computes with them, and its parameters have other names.

        Args:
            value_head: whether the output layer is a value head, which gets an adapter like any layer.

        Raises:
            RunError: the model has no such layer, or a named one cannot have an adapter.
        """
        config = LoraConfig(
            task_type=None if value_head else TaskType.CAUSAL_LM,
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=_EVERYTHING if settings.layers is None else list(settings.layers),
            bias="none",
        )
        try:
            return cls(get_peft_model(model, config))
        except ValueError as error:
            cause = str(error).strip().splitlines()[0].rstrip(".")
            raise RunError(f"the model cannot have these adapters: {cause}; check --ds.lora.target_modules") from error

    def parameters(self) -> Iterator[tuple[str, MergedWeight]]:
        """Yield the parameters of the model without adapters, a tied one once."""
        return self._merged(self._model.named_parameters())

    def state(self) -> dict[str, Tensor]:
        """Return what a file of the model without adapters holds, in main memory; a tied weight once."""
        tied = set(getattr(self._model, "all_tied_weights_keys", None) or ())
        tensors = {name: tensor for name, tensor in self._model.state_dict().items() if name not in tied}
        return {name: weight.data.cpu() for name, weight in self._merged(tensors.items())}

    def _merged(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, MergedWeight]]:
        for name, tensor in tensors:
            layer, inside, rest = name.partition(".base_layer.")
            if inside:
                yield f"{layer}.{rest}", MergedWeight(tensor, self._layers[layer] if rest == "weight" else None)
            elif name.partition(".lora_")[0] not in self._layers:
                yield name, MergedWeight(tensor, None)

    def save(self, folder: Path) -> None:
        """Write peft's own files to ``adapter`` in a model's folder.

        ``PeftModel.from_pretrained`` reads them on top of the model that the run started from.
        """
        # Embeddings are never trained here; by default peft would ask the hub whether they were resized.
        self._wrapped.save_pretrained(str(folder / _FOLDER), save_embedding_layers=False)

    def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote to a model's folder. Raises ``RunError`` if it is of other adapters."""
        saved = load_file(folder / _FOLDER / _FILE)
        own = get_peft_model_state_dict(self._wrapped, save_embedding_layers=False)
        if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in own.items()}:
            raise RunError(f"{folder} holds adapters of other sizes than --ds.lora.* gives; set the flags back")
        for name, value in own.items():
            value.copy_(saved[name])
