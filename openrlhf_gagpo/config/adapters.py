"""Adapters (LoRA) as flags: which layers get them, what they add to a model, and what does not go with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config.reading import say
from openrlhf_gagpo.config.resolve import Config, uses_critic
from openrlhf_gagpo.config.shapes import LinearLayer, ModelShape, find_shape

__all__ = ["AdapterShape", "adapted_names", "adapter_problems", "adapter_shape"]

_RANK, _LAYERS = "ds.lora.rank", "ds.lora.target_modules"


@dataclass(frozen=True)
class AdapterShape:
    """Sizes of a model's adapters: a layer of I inputs and O outputs has matrices of rank x I and O x rank."""

    rank: int
    layers: tuple[LinearLayer, ...]
    """Those that have adapters."""
    dropout: bool

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return self.rank * sum(layer.inputs + layer.outputs for layer in self.layers)

    @property
    def largest(self) -> int:
        """Number of parameters in the largest matrix."""
        return self.rank * max((max(layer.inputs, layer.outputs) for layer in self.layers), default=0)


def adapted_names(config: Config) -> tuple[str, ...] | None:
    """Return the names of the layers that get adapters; None for all linear ones but the output layer."""
    names = config.get(_LAYERS)
    return None if names == Config.default(_LAYERS) else tuple(names)


def adapter_shape(config: Config, shape: ModelShape, *, value_head: bool = False) -> AdapterShape | None:
    """Return the adapters of a model of this shape; None if all its weights are trained.

    Args:
        value_head: whether the model ends in a value head, which is a linear layer like others.
    """
    lora, names = config.ds.lora, adapted_names(config)
    if not lora.rank:
        return None
    layers = [*shape.linear_layers(), *([LinearLayer(_head(config), shape.width, 1)] if value_head else ())]
    chosen = (layer for layer in layers if names is None or any(_is_named(layer, name) for name in names))
    return AdapterShape(lora.rank, tuple(chosen), dropout=lora.dropout > 0)


def _head(config: Config) -> str:
    """Return the name of a critic's value head."""
    head: str = config.ds.value_head_prefix
    return head


def _is_named(layer: LinearLayer, name: str) -> bool:
    """Return whether ``name`` is a layer's name or the end of it, as peft understands names."""
    return f".{layer.name}".endswith(f".{name}")


def adapter_problems(config: Config) -> Iterator[str]:
    """Yield why no machine could train the adapters that are asked for."""
    if not config.ds.lora.rank:
        for name in ("ds.lora.alpha", _LAYERS, "ds.lora.dropout"):
            if config.get(name) != Config.default(name):
                yield f"{say(config, name)} has no effect without --{_RANK}; set that too, or remove it"
        return
    yield from _layers(config)
    rank = f"{say(config, _RANK)} {config.ds.lora.rank}"
    if BACKENDS[config.backend].one_process:
        return
    if config.ds.zero_stage == 3:
        yield f"{rank} needs weights that are whole on every worker, to merge them; set ds.zero_stage to 2"
    if config.ds.tensor_parallel_size > 1:
        yield f"{rank} needs weights that are whole on every worker, to merge them; set ds.tensor_parallel_size to 1"
    for section in ("actor", "critic") if uses_critic(config) else ("actor",):
        if config.get(f"{section}.optim") == "muon":
            yield f"{rank}: Muon is for whole weights, not for an adapter's two factors; set {section}.optim to adam"


def _layers(config: Config) -> Iterator[str]:
    where, names = say(config, _LAYERS), adapted_names(config)
    if names is None:
        return
    if not set(names) - {_head(config)}:
        yield f"{where} names no layer of the policy; name some, or leave it out for all linear layers"
    everything = Config.default(_LAYERS)
    if everything in names:
        yield f"{where} {everything} includes the others; give it alone, or leave it out"
    if uses_critic(config):
        # A new head is drawn at random, and only its adapter is trained.
        if _head(config) not in names:
            yield f"{where} leaves out the critic's head, which would never be trained; add {_head(config)}"
        names = tuple(name for name in names if name != _head(config))
    shape = find_shape(config.actor.model_name_or_path)
    if isinstance(shape, str):
        # Of another type, or not at hand; then loading it finds the layers that are missing.
        return
    layers = list(shape.linear_layers())
    known = ", ".join(dict.fromkeys(layer.name.rpartition(".")[2] for layer in layers))
    for name in names:
        if not any(_is_named(layer, name) for layer in layers):
            yield f"{where} names {name}, and the layers of this model that can have adapters are {known}; correct it"
