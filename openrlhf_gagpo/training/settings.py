"""The typed settings of training; ``config.settings`` fills them from the flags of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openrlhf_gagpo import losses
from openrlhf_gagpo.credit import EstimatorOptions
from openrlhf_gagpo.evaluation import EvaluationPlan
from openrlhf_gagpo.plugins import load_algo_plugins
from openrlhf_gagpo.rollout.filtering import GroupFilter
from openrlhf_gagpo.rollout.player import RolloutSettings
from openrlhf_gagpo.rollout.types import SamplingParams
from openrlhf_gagpo.training.corrections import SamplerCorrection
from openrlhf_gagpo.training.objective import Objective
from openrlhf_gagpo.training.rows import (
    MicroBatch,
    OptimizerStep,
    TokenRow,
    plan_by_prompt,
    plan_updates,
    prompt_numbers,
    sequence_numbers,
    unique_rows,
)

__all__ = [
    "BackendSettings",
    "BatchSettings",
    "CheckpointSettings",
    "CriticSettings",
    "LoopSettings",
    "LoraSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "TrackerSettings",
    "WandbSettings",
]


@dataclass(frozen=True)
class BatchSettings:
    """How rows are cut into optimizer steps and passes."""

    rows_per_step: int
    """Rows of one optimizer step (see ``plan_updates``)."""
    micro_batch: int | None
    """Maximum sequences of one training pass on one rank; None for as many as ``micro_tokens`` allows."""
    micro_tokens: int | None
    """Maximum padded tokens of one training pass on one rank."""
    forward_micro_batch: int | None
    forward_micro_tokens: int | None
    epochs: int = 1
    equal_rows_once: bool = True
    """Whether rows with the same tokens are read once in an optimizer step, which is exact without dropout."""

    def plan_forward(self, rows: Sequence[TokenRow], ranks: int = 1) -> list[OptimizerStep]:
        """Plan passes that compute something for every row once (one "step" over all rows; none without rows)."""
        return plan_updates(
            [row.length for row in rows],
            [len(row.response_ids) for row in rows],
            mini_batch=max(len(rows), 1),
            micro_batch=self.forward_micro_batch,
            max_tokens=self.forward_micro_tokens,
            ranks=ranks,
            sequences=sequence_numbers(rows),
            # Nothing is dropped out outside of training.
            equal=unique_rows(rows)[1],
        )

    def plan_by_prompt(self, rows: Sequence[TokenRow]) -> list[MicroBatch]:
        """Plan the passes of ``plan_forward`` on one device, rows of one prompt side by side."""
        return plan_by_prompt(rows, self.forward_micro_batch, self.forward_micro_tokens)

    def plan_training(self, rows: Sequence[TokenRow], ranks: int, seed: int) -> list[OptimizerStep]:
        """Plan the optimizer steps of one iteration."""
        return plan_updates(
            [row.length for row in rows],
            [len(row.response_ids) for row in rows],
            mini_batch=self.rows_per_step,
            micro_batch=self.micro_batch,
            max_tokens=self.micro_tokens,
            ranks=ranks,
            epochs=self.epochs,
            seed=seed,
            together=prompt_numbers(rows),
            sequences=sequence_numbers(rows),
            equal=unique_rows(rows)[1] if self.equal_rows_once else None,
        )


@dataclass(frozen=True)
class ObjectiveSettings:
    """The objective by name, in a form that can be sent to a worker process."""

    policy_loss: str
    response_limit: int
    """Response tokens that an action may have at most."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Fields of the loss's options class; the rest keep their defaults."""
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    entropy_coef: float | None = None
    correction: SamplerCorrection | None = None
    plugins: tuple[str, ...] = ()

    def build(self) -> Objective:
        """Load the plugins, which may hold the loss, and build the objective."""
        load_algo_plugins(self.plugins)
        loss = losses.get(self.policy_loss)
        return Objective(
            policy=loss,
            options=loss.options_cls(**self.options),
            response_limit=self.response_limit,
            kl_coef=self.kl_coef,
            kl_estimator=self.kl_estimator,
            entropy_coef=self.entropy_coef,
            correction=self.correction,
        )


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its schedule over iterations, under OpenRLHF's flags."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    scheduler: str
    """Name of the schedule in transformers."""
    warmup_ratio: float
    min_lr_ratio: float
    max_norm: float
    """Gradient norm above which gradients are scaled down; 0 for never."""
    max_bad_steps: int = 5
    """Steps in a row that may be skipped for a gradient that is not finite before the run ends; 0 for any number."""


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters, which alone are trained: W x + (alpha / rank) B A x in place of W x."""

    rank: int
    alpha: int
    dropout: float
    """Share of x that is dropped before A in training."""
    layers: tuple[str, ...] | None
    """The ends of the names of the layers W; None for all linear ones but the output layer."""


@dataclass(frozen=True)
class CriticSettings:
    """The critic of estimators that need its values."""

    model: str
    """Model folder, or name on the hub."""
    new_head: bool
    """Whether the model has no value head yet, because it is the policy's."""
    optimizer: OptimizerSettings
    value_clip: float
    """Distance from its earlier value beyond which a value's improvement does not count."""
    gradient_checkpointing: bool
    export: bool
    """Whether the trained critic is written as a Hugging Face folder beside the policy's."""


@dataclass(frozen=True)
class CheckpointSettings:
    """Where training state and the final model are written."""

    path: Path
    output_dir: Path
    max_num: int
    """Checkpoints that are kept, at least 1."""
    max_bytes: float = math.inf
    """Bytes of the checkpoints that are kept; the newest is kept whatever its size."""

    @property
    def critic_dir(self) -> Path:
        """Folder of the trained critic, as OpenRLHF names it."""
        return self.output_dir.with_name(self.output_dir.name + "_critic")


@dataclass(frozen=True)
class WandbSettings:
    """A run at Weights & Biases."""

    key: str = field(repr=False)
    entity: str | None
    group: str | None
    project: str
    name: str
    config: Mapping[str, object] = field(repr=False)
    """The values of all flags, without secrets."""


@dataclass(frozen=True)
class TrackerSettings:
    """Where a run's metrics go besides its folder."""

    every: int = 1
    """Iterations between entries of training metrics."""
    tensorboard: Path | None = None
    """Folder of this run's TensorBoard files; None for none."""
    wandb: WandbSettings | None = None
    """None for no Weights & Biases."""


@dataclass(frozen=True)
class BackendSettings:
    """The settings of a backend."""

    model: str
    """Model folder, or name on the hub."""
    use_fast_tokenizer: bool
    param_dtype: str
    """Number format of passes: ``bf16``, ``fp16`` or ``fp32``."""
    gradient_checkpointing: bool
    seed: int
    iterations: int
    temperature: float
    """Sampling temperature of the training rollouts; log-probabilities are computed with it."""
    rollout: RolloutSettings
    batches: BatchSettings
    objective: ObjectiveSettings
    optimizer: OptimizerSettings
    checkpoints: CheckpointSettings
    lora: LoraSettings | None = None
    """None if all weights are trained."""
    critic: CriticSettings | None = None
    """None if the estimator needs no critic."""
    trackers: TrackerSettings = TrackerSettings()
    logit_chunk: int = 0
    """Response positions whose logits exist at a time in passes; 0 for all."""
    gpus: int = 0
    """GPUs that the placement needs; on a machine without GPUs they are logical ones, which only Ray counts."""
    stall_timeout: float = 0.0
    """Distributed backend: seconds without a finished group after which an engine counts as hung; 0 for never."""
    worker_timeout: float = 7200.0
    """Distributed backend: seconds that workers may take for one call, such as an iteration's update."""
    device: str = "auto"
    """Local backend: ``auto``, ``cpu`` or ``cuda``."""
    threads: int | None = None
    """Local backend: torch threads; None leaves the choice to torch."""


@dataclass(frozen=True)
class LoopSettings:
    """The settings of the iteration loop."""

    environment: str
    """Name of the environment, for messages."""
    seed: int
    iterations: int
    tasks_per_iteration: int
    group_size: int
    sampling: SamplingParams
    estimator: str
    estimator_options: EstimatorOptions
    objective: ObjectiveSettings
    train_tasks: Sequence[str]
    group_filter: GroupFilter | None = None
    """None trains on every whole group of the tasks that were drawn first."""
    evaluation: EvaluationPlan | None = None
    """None if the run has no evaluation split."""
    evaluation_between: EvaluationPlan | None = None
    """What evaluations between start and end play; None for the same plan."""
    greedy: str = "never"
    """Evaluations that also play greedily: ``ends``, ``always`` or ``never``."""
    evaluate_every: int | None = None
    evaluate_before: bool = True
    evaluate_after: bool = True
    save_every: int | None = None
    critic_warmup: int = 0
    """Iterations at the start in which only the critic is trained."""
    overlap: bool = False
    """Whether the next rollout is played during an update, with the weights of before it."""
    record: bool = True
    """Whether every episode is written to the run folder."""
    unknown_token: int | None = None
    """Id that the tokenizer gives to what it does not know; None if it has no such id."""
