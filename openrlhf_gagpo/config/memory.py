"""An estimate of the memory of a run by phase, from flags and the shape of the model (docs/memory.md has the formula).

All numbers are bytes on one device. Rows are taken to be as long as the flags allow, so a run with shorter ones takes
less. What frameworks hold for themselves (CUDA context, communication buffers, fragments) is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config.adapters import AdapterShape, adapter_shape
from openrlhf_gagpo.config.placement import Plan
from openrlhf_gagpo.config.resolve import Config, uses_critic
from openrlhf_gagpo.config.shapes import ModelShape

__all__ = [
    "BLOCK",
    "PARTS",
    "Estimate",
    "Passes",
    "Phase",
    "activation_bytes",
    "estimate",
    "logit_bytes",
]

PARTS = ("weights", "gradients", "buffers", "optimizer", "activations", "logits", "cache")
_FLOAT = 4
BLOCK = 2**22
"""``training.token_scores`` reads so many logits at a time."""
BUCKET = 500_000_000
"""DeepSpeed reduces at most so many gradients at a time (``distributed.strategy.DEFAULT_BUCKET``)."""
LIVE = 1_000_000_000
"""ZeRO-3 keeps so many weights whole before it gives some back (``stage3_max_live_parameters``)."""


@dataclass(frozen=True)
class Phase:
    """What a process has on its device in one phase for one model."""

    holder: str
    """The model or the process."""
    name: str
    parts: Mapping[str, float]
    """Bytes by part; those that are absent are 0."""

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Estimate:
    """The phases of all processes, and what the formula does not know as sentences."""

    phases: tuple[Phase, ...] = ()
    notes: tuple[str, ...] = ()
    shared: Mapping[str, float] = field(default_factory=dict)
    """Bytes by phase on a device that all processes share."""


@dataclass(frozen=True)
class Passes:
    """The size and the number format of a model's largest training pass."""

    sequences: int
    length: int
    """Tokens of each sequence."""
    answered: int
    """Response tokens of all sequences together."""
    number_bytes: int
    """Of a number in the model's passes: 2 or 4."""
    weight_bytes: int
    """Of a number in its weights."""
    checkpointing: bool
    chunk: int
    """``train.logit_chunk``."""
    float_logits: bool
    """Whether logits are made float32 as a whole."""
    masked: bool
    """Whether padded sequences get a mask over pairs of tokens."""

    @property
    def tokens(self) -> int:
        """Of all sequences, with padding."""
        return self.sequences * self.length


def _layer_bytes(shape: ModelShape, passes: Passes) -> float:
    """Return what the backward pass of a layer needs of the forward pass, per token."""
    inner, width, queries, keys = shape.inner, shape.width, shape.queries, shape.keys
    rest = _FLOAT * (2 + shape.heads + shape.head_norms * (shape.heads + shape.key_heads))
    if passes.number_bytes == _FLOAT:
        attention = (2 + 2 * shape.head_norms) * (queries + keys)
        return _FLOAT * (6 * width + 4 * inner + attention) + rest
    # Norms compute in float32 and keep their input in it.
    attention = 2 * 2 * (queries + keys) + (_FLOAT + 2) * shape.head_norms * (queries + keys)
    norms = 2 * (_FLOAT + 2 + 2) * width
    if passes.weight_bytes == _FLOAT:
        # Under autocast the norms' outputs are float32 too, and each projection keeps its own rounded copy.
        norms = 2 * (_FLOAT + _FLOAT) * width + 5 * 2 * width
    return norms + 2 * 4 * inner + attention + rest


def _adapter_bytes(adapters: AdapterShape, passes: Passes) -> float:
    """Return what the backward pass of the adapters of all layers needs beside what the layers keep, per token."""
    numbers = sum(adapters.rank + layer.inputs * adapters.dropout for layer in adapters.layers)
    # Which numbers were dropped is kept in a byte each.
    return numbers * passes.number_bytes + adapters.dropout * sum(layer.inputs for layer in adapters.layers)


def activation_bytes(shape: ModelShape, passes: Passes, adapters: AdapterShape | None = None) -> float:
    """Return what the backward pass of the whole model needs of the forward pass."""
    layer = passes.tokens * _layer_bytes(shape, passes)
    if adapters is not None:
        layer += passes.tokens * _adapter_bytes(adapters, passes) / shape.layers
    if passes.masked:
        # The mask as numbers to add, and keys and values repeated for every head.
        pairs = passes.sequences * passes.length**2
        layer += (pairs + 2 * passes.tokens * (shape.queries - shape.keys)) * passes.number_bytes
    kept = shape.layers * layer
    if passes.checkpointing:
        kept = layer + shape.layers * passes.tokens * shape.width * passes.number_bytes
    return kept + 3 * passes.tokens * shape.width * _FLOAT


def _transient_bytes(shape: ModelShape, passes: Passes, *, backward: bool, adapters: bool) -> float:
    """Return what a layer's own computation takes for a moment."""
    # What an adapter adds to a layer's output is made beside it.
    feed_forward = (1 if backward else 3 + adapters) * shape.inner + 2 * shape.width
    return passes.tokens * max(feed_forward, 4 * shape.queries) * passes.number_bytes


def logit_bytes(shape: ModelShape, passes: Passes, *, backward: bool) -> float:
    """Return what logits and their gradient take at most."""
    made = min(passes.answered, passes.chunk or passes.answered) * shape.words
    own = passes.number_bytes if not passes.float_logits or passes.chunk else _FLOAT
    rounded = passes.number_bytes if passes.float_logits and not passes.chunk and passes.number_bytes != _FLOAT else 0
    return made * max(2 * own if backward else own, own + rounded) + 2 * _FLOAT * min(made, BLOCK)


@dataclass(frozen=True)
class _Model:
    """A model of a run as far as it takes memory."""

    shape: ModelShape
    adapters: AdapterShape | None = None
    """None if all weights are trained, or none."""
    value_head: bool = False
    """Whether the model ends in one number instead of logits."""

    @property
    def trained(self) -> int:
        """Number of parameters that are trained."""
        return self.adapters.parameters if self.adapters else self._own

    @property
    def numbers(self) -> int:
        """Number of all parameters."""
        return self._own + (self.adapters.parameters if self.adapters else 0)

    @property
    def largest(self) -> int:
        """Number of parameters in the largest tensor that is trained."""
        return self.adapters.largest if self.adapters else self.shape.largest

    @property
    def _own(self) -> int:
        return self.shape.parameters - self.value_head * self.shape.words * self.shape.width * (not self.shape.tied)


def _update_parts(
    model: _Model, passes: Passes, *, split: Mapping[str, float], optimizer_bytes: int = 8
) -> dict[str, float]:
    """Return the parts of a pass with backward pass, while gradients of earlier passes are there.

    Args:
        split: by how many devices weights, gradients and optimizer states are divided.
        optimizer_bytes: per parameter that is trained.
    """
    logits = 0.0 if model.value_head else logit_bytes(model.shape, passes, backward=True)
    # Either the logits are there or the last layer's own computation, and a gradient before it is added up.
    transient = _transient_bytes(model.shape, passes, backward=True, adapters=model.adapters is not None)
    spare = max(0.0, transient - logits)
    return {
        "weights": model.numbers * passes.weight_bytes / split["weights"]
        + _rounded_weights(model, passes, backward=True),
        "gradients": model.trained * passes.weight_bytes / split["gradients"] + model.largest * passes.weight_bytes,
        "optimizer": model.trained * optimizer_bytes / split["optimizer"],
        "activations": activation_bytes(model.shape, passes, model.adapters) + spare,
        "logits": logits,
    }


def _forward_parts(
    model: _Model, passes: Passes, *, split: Mapping[str, float], optimizer_bytes: int = 0
) -> dict[str, float]:
    """Return the parts of a pass without gradient; arguments as for ``_update_parts``."""
    logits = 0.0 if model.value_head else logit_bytes(model.shape, passes, backward=False)
    transient = _transient_bytes(model.shape, passes, backward=False, adapters=model.adapters is not None)
    spare = max(0.0, transient - logits)
    hidden = passes.tokens * model.shape.width * _FLOAT
    return {
        "weights": model.numbers * passes.weight_bytes / split["weights"]
        + _rounded_weights(model, passes, backward=False),
        "optimizer": model.trained * optimizer_bytes / split["optimizer"],
        "activations": 2 * hidden + spare,
        "logits": logits,
    }


def _rounded_weights(model: _Model, passes: Passes, *, backward: bool) -> float:
    """Return the copies of weights that autocast makes for a pass; an embedding alone needs none."""
    shape = model.shape
    rounded: float = shape.parameters - shape.words * shape.width * (not shape.tied)
    if model.adapters is not None and not backward:
        # Autocast itself keeps copies of what is trained; those of other weights stay for a backward pass alone.
        rounded = shape.largest
    elif model.adapters is not None and passes.checkpointing:
        rounded = max(shape.largest, rounded / shape.layers)
    return rounded * passes.number_bytes * (passes.number_bytes < passes.weight_bytes)


_WHOLE = {"weights": 1.0, "gradients": 1.0, "optimizer": 1.0}


def estimate(config: Config, plan: Plan, policy: ModelShape, critic: ModelShape | None = None) -> Estimate:
    """Return the estimate of a run whose policy and critic have these shapes (the policy's, if it has no other)."""
    trained = _Model(policy, adapter_shape(config, policy))
    value_model = None
    if uses_critic(config):
        values = critic or policy
        value_model = _Model(values, adapter_shape(config, values, value_head=True), value_head=True)
    one_process = BACKENDS[plan.backend].one_process
    return (_local if one_process else _distributed)(config, plan, trained, value_model)


def _passes(config: Config, *, local: bool, forward: bool = False) -> Passes:
    train, rollout, length = config.train, config.rollout, config.data.max_len
    limit = rollout.max_tokens_per_gpu if forward else train.max_tokens_per_gpu * train.dynamic_batch_enable
    sequences = max(1, limit // length) if limit else (rollout if forward else train).micro_batch_size
    if not forward:
        sequences = min(sequences, train.batch_size)
    growing = rollout.context == "transcript"
    turns = config.env.max_steps if growing and config.env.max_steps else (length if growing else 1)
    number = 4 if config.ds.param_dtype == "fp32" else 2
    return Passes(
        sequences=sequences,
        length=length,
        answered=sequences * min(length, turns * rollout.max_new_tokens),
        number_bytes=number,
        weight_bytes=4 if local else number,
        checkpointing=config.actor.gradient_checkpointing_enable,
        chunk=train.logit_chunk,
        float_logits=not local,
        # Kernels of flash-attn read sequences without padding, and so do packed ones.
        masked=local or not (config.ds.packing_samples or "flash" in config.ds.attn_implementation),
    )


def _local(config: Config, plan: Plan, policy: _Model, critic: _Model | None) -> Estimate:
    training, reading = _passes(config, local=True), _passes(config, local=True, forward=True)
    references = config.algo.kl.init_coef > 0
    shape = policy.shape
    others = {"weights": shape.parameters * _FLOAT * references, "optimizer": 0.0}
    if critic is not None:
        others["weights"] += critic.numbers * _FLOAT
        others["optimizer"] += critic.trained * 2 * _FLOAT
    episodes = min(config.rollout.concurrency, plan.episodes)
    cache = episodes * config.data.max_len * shape.cache_bytes(training.number_bytes)
    resident = {"weights": policy.numbers * _FLOAT, "optimizer": policy.trained * 2 * _FLOAT}
    phases = {
        "rollout": _sum(resident, others, {"cache": cache, "logits": episodes * shape.words * _FLOAT}),
        "forward": _sum(_forward_parts(policy, reading, split=_WHOLE, optimizer_bytes=2 * _FLOAT), others),
        "update": _sum(_update_parts(policy, training, split=_WHOLE), others),
    }
    if critic is not None:
        phases["critic update"] = _sum(_update_parts(critic, training, split=_WHOLE), resident)
        if references:
            phases["critic update"]["weights"] += shape.parameters * _FLOAT
    return Estimate(tuple(Phase("this process", name, parts) for name, parts in phases.items()))


def _distributed(config: Config, plan: Plan, policy: _Model, critic: _Model | None) -> Estimate:
    training, reading = _passes(config, local=False), _passes(config, local=False, forward=True)
    ds, vllm = config.ds, config.vllm
    phases = _worker("policy", config.actor, config, policy, training, reading)
    if config.algo.kl.init_coef > 0:
        ranks = _ranks(config.ref, ds) if ds.zero_stage == 3 else 1
        split = {"weights": ds.tensor_parallel_size * ranks, "optimizer": 1.0}
        parts = _forward_parts(_Model(policy.shape), reading, split=split)
        kept = {} if config.ref.offload else {"weights": parts["weights"]}
        each = {"rollout": kept, "forward": parts, "update": kept}
        phases += [Phase("reference", name, chosen) for name, chosen in each.items()]
    if critic is not None:
        phases += _worker("critic", config.critic, config, critic, training, reading)
    engines = max(vllm.num_engines or 0, 1)
    episodes = -(-min(config.rollout.concurrency, plan.episodes) // engines)
    share = vllm.tensor_parallel_size
    token = policy.shape.cache_bytes(training.number_bytes)
    engine = {
        # Adapters are merged into what an engine gets.
        "weights": policy.shape.parameters * training.number_bytes / share,
        "cache": episodes * config.data.max_len * token / share,
    }
    phases.append(Phase("vLLM engine", "rollout", engine))
    if not vllm.enable_sleep:
        phases += [Phase("vLLM engine", name, engine) for name in ("forward", "update")]
    notes = (
        f"a vLLM engine takes {vllm.gpu_memory_utilization:.0%} of its GPU (vllm.gpu_memory_utilization), whatever it "
        f"needs; its cache is given for {episodes} episodes at full length, {token / share / 1024:.3g} KiB per token",
    )
    shared: dict[str, float] = {}
    if config.train.colocate_all:
        for phase in phases:
            shared[phase.name] = shared.get(phase.name, 0.0) + phase.total
    return Estimate(tuple(phases), notes, shared)


def _worker(name: str, section: Any, config: Config, model: _Model, training: Passes, reading: Passes) -> list[Phase]:
    """Return the phases of a model that DeepSpeed trains: ZeRO-1 divides optimizer states, 2 gradients, 3 weights."""
    ds = config.ds
    ranks, parallel = _ranks(section, ds), ds.tensor_parallel_size
    split = {
        "weights": parallel * (ranks if ds.zero_stage >= 3 else 1),
        "gradients": parallel * (ranks if ds.zero_stage >= 2 else 1),
        "optimizer": parallel * (ranks if ds.zero_stage >= 1 else 1),
    }
    # Float32 weights and the two moments of AdamW.
    state = 0 if ds.adam_offload else 3 * _FLOAT
    update = _update_parts(model, training, split=split, optimizer_bytes=state)
    forward = _forward_parts(model, reading, split=split, optimizer_bytes=state)
    bucket = min(BUCKET, model.trained) * training.weight_bytes
    if ds.zero_stage == 3:
        # It is always there, and so many weights are whole for a pass.
        reduced = float(bucket + min(LIVE, model.numbers) * training.weight_bytes)
        forward["buffers"] = reduced
    else:
        # It comes when the logits are gone.
        reduced = max(0.0, bucket * (2 if ds.overlap_comm else 1) - update["logits"])
    # The step makes the gradients float32, when everything else of a pass is gone.
    stepped = model.trained * (0 if ds.adam_offload else _FLOAT) / split["optimizer"]
    passing = update["activations"] + update["logits"] + model.largest * training.weight_bytes
    update["buffers"] = max(reduced, stepped - passing)
    resident = {} if ds.enable_sleep else {name: forward[name] for name in ("weights", "optimizer")}
    if ds.zero_stage == 3:
        resident["buffers"] = bucket
    phases = {"rollout": resident, "forward": forward, "update": update}
    return [Phase(name, phase, parts) for phase, parts in phases.items()]


def _ranks(section: Any, ds: Any) -> int:
    """Return the data-parallel ranks of a model's workers, at least 1."""
    return max(1, section.num_nodes * section.num_gpus_per_node // (ds.ring_attn_size * ds.tensor_parallel_size))


def _sum(*groups: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for group in groups:
        for name, value in group.items():
            total[name] = total.get(name, 0.0) + value
    return total
