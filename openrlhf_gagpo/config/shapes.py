"""The shape of a model, read from its ``config.json`` without loading it, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_gagpo.config.models import cache_folder

__all__ = ["LinearLayer", "ModelShape", "find_shape", "has_dropout"]


@dataclass(frozen=True)
class _Kind:
    """What the models of a type have beside the projections and norms of all of them."""

    biases: bool = False
    """Of queries, keys and values."""
    head_norms: bool = False
    """Of queries and keys."""


_KINDS: Mapping[str, _Kind] = {
    "llama": _Kind(),
    "mistral": _Kind(),
    "qwen2": _Kind(biases=True),
    "qwen3": _Kind(head_norms=True),
}
"""Types of dense models with gated layers, by ``model_type``."""


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer between embedding and output layer."""

    name: str
    """Its full name in the model."""
    inputs: int
    outputs: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder with gated feed-forward layers."""

    words: int
    width: int
    """Of hidden states."""
    inner: int
    """Of feed-forward layers."""
    layers: int
    queries: int
    """Numbers in the queries of a token and layer: heads times their size."""
    keys: int
    """The same of keys, and of values."""
    heads: int
    key_heads: int
    tied: bool
    """Whether the output layer is the embedding."""
    biases: bool
    head_norms: bool

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        attention = 2 * self.width * self.queries + 2 * self.width * self.keys
        attention += (self.queries + 2 * self.keys) * self.biases + 2 * self.head_size * self.head_norms
        layer = attention + 3 * self.width * self.inner + 2 * self.width
        return self.words * self.width * (1 if self.tied else 2) + self.layers * layer + self.width

    @property
    def largest(self) -> int:
        """Number of parameters in the largest tensor."""
        return self.width * max(self.words, self.inner, self.queries)

    @property
    def head_size(self) -> int:
        """Numbers in a head."""
        return self.queries // self.heads

    def linear_layers(self) -> Iterator[LinearLayer]:
        """Yield the linear layers between embedding and output layer."""
        sizes = {
            "self_attn.q_proj": (self.width, self.queries),
            "self_attn.k_proj": (self.width, self.keys),
            "self_attn.v_proj": (self.width, self.keys),
            "self_attn.o_proj": (self.queries, self.width),
            "mlp.gate_proj": (self.width, self.inner),
            "mlp.up_proj": (self.width, self.inner),
            "mlp.down_proj": (self.inner, self.width),
        }
        for number in range(self.layers):
            for name, (inputs, outputs) in sizes.items():
                yield LinearLayer(f"model.layers.{number}.{name}", inputs, outputs)

    def cache_bytes(self, number_bytes: int) -> int:
        """Return the bytes of keys and values of one token."""
        return 2 * self.layers * self.keys * number_bytes


def _qwen(
    words: int, width: int, inner: int, layers: int, heads: int, key_heads: int, *, tied: bool, third: bool = False
) -> ModelShape:
    """Return the shape of a Qwen2.5 model, or of a Qwen3 (``third``); both have heads of 128 numbers."""
    return ModelShape(
        words, width, inner, layers, heads * 128, key_heads * 128, heads, key_heads, tied,
        biases=not third, head_norms=third,
    )  # fmt: skip


_PUBLISHED: Mapping[str, ModelShape] = {
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen(151936, 1536, 8960, 28, 12, 2, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen(151936, 2048, 11008, 36, 16, 2, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(152064, 3584, 18944, 28, 28, 4, tied=False),
    "Qwen/Qwen3-4B": _qwen(151936, 2560, 9728, 36, 32, 8, tied=True, third=True),
}
"""Shapes of the models that the recipes name, as their authors publish them."""


def find_shape(name: str | None) -> ModelShape | str:
    """Return the shape of a model folder or of a hub model that was fetched before; a sentence if it is not known."""
    if not name:
        return "no model is given"
    try:
        file = _config_file(name)
        if file is None:
            return _PUBLISHED.get(name) or (
                f"the config.json of {name} is not at hand; fetch the model, or give a folder that holds this file"
            )
        return _shape(json.loads(file.read_text(encoding="utf-8")), name)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        return f"the config.json of {name} does not give the sizes of a model ({type(error).__name__}: {error})"


def has_dropout(name: str | None) -> bool:
    """Return whether the ``config.json`` of a model asks for dropout; a model whose file is not at hand has none."""
    try:
        file = _config_file(name) if name else None
        content = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, RuntimeError, ValueError):
        return False
    return any(isinstance(value, int | float) and value > 0 for key, value in content.items() if "drop" in key)


def _config_file(name: str) -> Path | None:
    """Return the file of a folder, or the newest that the hub's cache has of a model."""
    folder = Path(name).expanduser()
    files = [folder / "config.json"] if folder.is_dir() else cache_folder(name).glob("snapshots/*/config.json")
    return max((file for file in files if file.is_file()), key=lambda file: file.stat().st_mtime, default=None)


def _shape(content: Mapping[str, Any], name: str) -> ModelShape | str:
    kind = _KINDS.get(content.get("model_type", ""))
    if kind is None:
        return (
            f"{name} is of the type {content.get('model_type', 'unknown')!r}, and the formula is for "
            f"{', '.join(sorted(_KINDS))}"
        )
    width, heads = int(content["hidden_size"]), int(content["num_attention_heads"])
    key_heads = int(content.get("num_key_value_heads") or heads)
    size = int(content.get("head_dim") or width // heads)
    return ModelShape(
        words=int(content["vocab_size"]),
        width=width,
        inner=int(content["intermediate_size"]),
        layers=int(content["num_hidden_layers"]),
        queries=heads * size,
        keys=key_heads * size,
        heads=heads,
        key_heads=key_heads,
        tied=bool(content.get("tie_word_embeddings", False)),
        biases=kind.biases,
        head_norms=kind.head_norms,
    )
