"""Policy, reference and rollout engines on one Ray placement group."""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from openrlhf.trainer.ppo_trainer import BasePPOTrainer
from openrlhf.trainer.ray.launcher import RayActorGroup
from openrlhf.utils import get_tokenizer
from ray.util.placement_group import placement_group, remove_placement_group
from torch import Tensor

from openrlhf_gagpo.backends import SHARE
from openrlhf_gagpo.backends.distributed import compat
from openrlhf_gagpo.backends.distributed.actors import PolicyActor, ReferenceActor, StepStrategy
from openrlhf_gagpo.backends.distributed.critic import CriticActor
from openrlhf_gagpo.backends.distributed.engine import create_engines
from openrlhf_gagpo.backends.distributed.experience import StepExperienceMaker
from openrlhf_gagpo.backends.distributed.fleet import EngineFleet
from openrlhf_gagpo.backends.distributed.stacks import Place, stacks_of
from openrlhf_gagpo.backends.trackers import Trackers
from openrlhf_gagpo.errors import DivergenceError, RunError
from openrlhf_gagpo.machine import cores
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.training.backend import OnStage, Restored, unnoticed
from openrlhf_gagpo.training.collate import TokenValues
from openrlhf_gagpo.training.rows import MicroBatch, TokenRow, TrainingRow
from openrlhf_gagpo.training.settings import BackendSettings, BatchSettings, TrackerSettings
from openrlhf_gagpo.training.table import LOG_PROB
from openrlhf_gagpo.training.values import value_columns
from openrlhf_gagpo.training.watchdog import own_stacks

__all__ = ["DistributedBackend", "StepTrainer"]

_PLACEMENT_TIMEOUT_S = 300
# Library settings that the workers share with the driver.
_FORWARDED = ("VLLM_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_", "NCCL_", "RAY_ENABLE", "DO_NOT_TRACK")


def _worker_variables() -> dict[str, str]:
    """Return the environment of the Ray workers: this process's library settings, without secrets.

    Ray refuses a variable that the submitted job's own runtime environment sets, even to the same value.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    taken = job.get("env_vars") or {}
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_FORWARDED) and not any(word in name for word in ("TOKEN", "KEY", "SECRET"))
    }
    variables.setdefault("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1")
    # Its name looks like a secret's.
    variables["TOKENIZERS_PARALLELISM"] = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    return {name: value for name, value in variables.items() if name not in taken}


def _explained(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a failure inside a Ray worker into one sentence with its cause and the place of the whole trace."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, DivergenceError):
                raise DivergenceError(str(cause)) from error
            node = ray._private.worker._global_node
            logs = "Ray's logs" if node is None else node.get_logs_dir_path()
            raise RunError(
                f"a worker failed with {type(cause).__name__}: {_in_a_line(cause)} (its trace is in {logs})"
            ) from error

    return run


def _in_a_line(error: BaseException) -> str:
    """Return the last line of an error's message, where Ray says what happened."""
    return " ".join(str(error).strip().split("\n")[-1].split())[:400].rstrip(".")


class StepTrainer(BasePPOTrainer):
    """OpenRLHF's single controller with step-level experience, which owns the actor groups."""

    def __init__(
        self,
        strategy: StepStrategy,
        policy: Any,
        critic: Any,
        reference: Any,
        engines: list[Any],
        tokenizer: Any,
        batches: BatchSettings,
    ) -> None:
        super().__init__(strategy, policy, critic, None, reference, engines, tokenizer)
        self.experience_maker = StepExperienceMaker(policy, critic, None, reference, self.kl_ctl, strategy, tokenizer)
        self.batches = batches

    def _ranks(self, section: Any) -> int:
        """Return the data-parallel ranks of the policy, the critic or the reference."""
        ds = self.args.ds
        ranks: int = section.num_nodes * section.num_gpus_per_node // (ds.ring_attn_size * ds.tensor_parallel_size)
        return ranks

    def values(self, rows: Sequence[TokenRow]) -> list[Tensor]:
        """Compute the critic's values at the positions of every row, in row order."""
        return self.experience_maker.values(rows, self._passes(rows, self.args.critic))

    def log_probs(self, rows: Sequence[TokenRow], group: Any) -> list[Tensor]:
        """Compute the log-probabilities of every row's response tokens under a model group, in row order."""
        # The reference may have GPUs of its own, of another number.
        section = self.args.ref if group is self.reference_model_group else self.args.actor
        return self.experience_maker.log_probs(rows, self._passes(rows, section), group)

    def _passes(self, rows: Sequence[TokenRow], section: Any) -> list[MicroBatch]:
        """Cut the rows into passes, rank after rank, as OpenRLHF deals a list of batches out in contiguous chunks."""
        plan = self.batches.plan_forward(rows, self._ranks(section))
        return [batch for step in plan for shard in step.shards for batch in shard]

    def update(self, rows: Sequence[TrainingRow], seed: int, *, policy: bool) -> dict[str, float]:
        """Run one iteration of optimizer steps on the rows; the critic's and the policy's run at the same time."""
        started = time.perf_counter()
        if self.critic_model_group is not None:
            plan = self.batches.plan_training(rows, self._ranks(self.args.critic), seed)
            self.experience_maker.hand_over_values(rows, plan)
        rows = rows if policy else []
        old = self._old_log_probs(rows)
        group = self.reference_model_group
        reference = None if group is None else self.log_probs(rows, group)
        forwarded = time.perf_counter()
        plan = self.batches.plan_training(rows, self._ranks(self.args.actor), seed)
        self.experience_maker.hand_over(rows, plan, old, reference)
        # OpenRLHF would leave the policy alone in early steps; here its plan is empty then.
        metrics = self.ppo_train(global_steps=self.args.critic.freezing_steps + 1)
        return {
            **metrics,
            "time/forward": forwarded - started,
            "time/update": time.perf_counter() - forwarded,
        }

    def _old_log_probs(self, rows: Sequence[TrainingRow]) -> Sequence[TokenValues]:
        """Return log-probabilities before the first update; reuse those that were computed for credit, if any."""
        known = [row.old_log_probs for row in rows if row.old_log_probs is not None]
        return known if len(known) == len(rows) else self.log_probs(rows, self.actor_model_group)


class DistributedBackend:
    """``training.backend.Backend`` on OpenRLHF's actors. The calling process is the Ray driver."""

    def __init__(self, settings: BackendSettings, arguments: SimpleNamespace) -> None:
        self.settings = settings
        self.args = arguments
        # Sent to the workers with the arguments.
        self.args.gagpo_objective = settings.objective
        # OpenRLHF's workers build its own loss too, which is not used and would refuse corrections that are ours.
        self.args.algo.advantage.is_correction_level = "off"
        # OpenRLHF's loggers would send the key along with the other arguments; ours write the same series.
        self.args.logger.wandb.key = self.args.logger.tensorboard_dir = None
        self._trackers = Trackers(TrackerSettings())
        self._fleet: EngineFleet | None = None
        self._trainer: StepTrainer | None = None
        self._places: list[Place] = []
        """Of the workers that are not engines."""
        self._groups: dict[str, Any] = {}
        self._owns_ray = False

    @property
    def fleet(self) -> EngineFleet:
        """The engines of a started backend."""
        if self._fleet is None:
            raise RuntimeError("the backend has not been started")
        return self._fleet

    @property
    def trainer(self) -> StepTrainer:
        """The controller of a started backend."""
        if self._trainer is None:
            raise RuntimeError("the backend has not been started")
        return self._trainer

    @_explained
    def start(self, on_stage: OnStage = unnoticed) -> dict[str, str]:
        args = self.args
        self._trackers = Trackers(self.settings.trackers)
        started = time.perf_counter()
        self._connect()
        self._check_gpus()
        connected = time.perf_counter()
        on_stage("Ray started" if self._owns_ray else "Ray joined", connected - started)
        strategy = StepStrategy(
            seed=args.train.seed,
            full_determinism=args.train.full_determinism_enable,
            max_norm=args.actor.max_norm,
            micro_train_batch_size=args.train.micro_batch_size,
            train_batch_size=args.train.batch_size,
            zero_stage=args.ds.zero_stage,
            args=args,
        )
        together = args.train.colocate_all
        shared = together or args.train.colocate_actor_ref
        self._reserve(shared=shared)
        # Everything starts at once, so that imports and model loading, which dominate, overlap.
        specs = create_engines(args, self._group("engines"), shared=together)
        fast = not args.data.disable_fast_tokenizer
        model = args.actor.model_name_or_path
        stall = self.settings.stall_timeout
        fleet = self._fleet = EngineFleet(specs, self.settings.rollout, model, fast, stall)
        policy = self._actors("policy", args.actor, PolicyActor, shared)
        reference = self._actors("reference", args.ref, ReferenceActor, shared) if args.algo.kl.init_coef > 0 else None
        critic = self._actors("critic", args.critic, CriticActor, together) if self.settings.critic else None
        tokenizer = get_tokenizer(model, None, "left", strategy, use_fast=fast)
        self._trainer = StepTrainer(
            strategy, policy, critic, reference, fleet.handles, tokenizer, self.settings.batches
        )
        refs = policy.async_init_model_from_pretrained(strategy, model, self.settings.iterations, fleet.handles)
        if reference is not None:
            refs += reference.async_init_model_from_pretrained(strategy, model)
        if critic is not None:
            refs += critic.async_init_model_from_pretrained(
                strategy, args.critic.model_name_or_path, self.settings.iterations
            )
        if args.train.colocate_all or not compat.cuda_available():
            # Elsewhere the policy's NCCL group holds the engines that it was made with.
            fleet.on_restart = self._send_weights
        ray.get(refs)
        groups = [group for group in (policy, reference, critic) if group is not None]
        self._places = ray.get([ref for group in groups for ref in group.async_run_method(method_name="listen")])
        models = time.perf_counter()
        on_stage("models loaded", models - connected)
        fleet.prepare()
        ready = time.perf_counter()
        count = len(fleet.handles)
        on_stage("engine started" if count == 1 else f"{count} engines started", ready - connected)
        gpus = self.settings.gpus
        return {
            "devices": f"{gpus} GPU" if compat.cuda_available() else f"{gpus} logical GPU on the CPU",
            # Seconds from the start of each until it was ready; models and engines load concurrently.
            "start_ray_s": f"{connected - started:.1f}",
            "start_models_s": f"{models - connected:.1f}",
            "start_engines_s": f"{ready - connected:.1f}",
        }

    def _check_gpus(self) -> None:
        """Raise ``RunError`` if the cluster is too small; Ray itself would wait without limit."""
        here = ray.cluster_resources().get("GPU", 0)
        needed = self.settings.gpus
        if here < needed:
            raise RunError(
                f"the run needs {needed} GPUs and the Ray cluster has {here:g}: lower the --actor, --ref and --vllm "
                "counts, or start more nodes"
            )

    def _reserve(self, *, shared: bool) -> None:
        """Reserve a placement group with one bundle per GPU for each set of processes that are on the same GPUs.

        Args:
            shared: whether the reference is on the policy's GPUs.

        Raises:
            RunError: others hold what is needed; OpenRLHF's own reservations would wait for it without limit.
        """
        args = self.args
        sizes = {"policy": args.actor.num_nodes * args.actor.num_gpus_per_node}
        if not shared and args.algo.kl.init_coef > 0:
            sizes["reference"] = args.ref.num_nodes * args.ref.num_gpus_per_node
        if not args.train.colocate_all:
            sizes["engines"] = args.vllm.num_engines * args.vllm.tensor_parallel_size
            if self.settings.critic:
                sizes["critic"] = args.critic.num_nodes * args.critic.num_gpus_per_node
        deadline = time.monotonic() + _PLACEMENT_TIMEOUT_S
        for name, size in sizes.items():
            self._groups[name] = placement_group([{"GPU": 1, "CPU": 1}] * size, strategy="PACK")
        if not all(group.wait(max(deadline - time.monotonic(), 0)) for group in self._groups.values()):
            raise RunError(
                f"Ray could not reserve {sum(sizes.values())} bundles of one GPU and one CPU within "
                f"{_PLACEMENT_TIMEOUT_S} s: another job holds them (see `ray status`); wait until it has ended, or "
                "lower the --actor, --ref and --vllm counts"
            )

    def _group(self, name: str) -> Any:
        """Return the placement group of some processes; those without one of their own are on the policy's GPUs."""
        return self._groups.get(name, self._groups["policy"])

    def _actors(self, name: str, counts: Any, actor_class: Any, shared: bool) -> RayActorGroup:
        return RayActorGroup(
            counts.num_nodes,
            counts.num_gpus_per_node,
            actor_class,
            pg=self._group(name),
            num_gpus_per_actor=SHARE if shared else 1,
            duplicate_actors=self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size,
        )

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        self._owns_ray = True
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": _worker_variables()},
            # The workers' output joins this process's, which a run keeps in its folder.
            "log_to_driver": True,
            "logging_level": logging.WARNING,
        }
        address = self.args.ray.address
        if not address:
            options["include_dashboard"] = False
            if not compat.cuda_available():
                # Ray counts logical GPUs; every bundle also needs a logical core, even if the machine has fewer.
                gpus = self.args.ray.num_gpus or self.settings.gpus
                options |= {"num_gpus": gpus, "num_cpus": max(cores(), gpus + 1)}
        try:
            # Without an address, Ray would join a cluster that somebody has started on this machine.
            ray.init(address=address or "local", **options)
        except Exception as error:  # of any class: a node that starts too slowly is a plain Exception
            cause = f"{type(error).__name__}: {_in_a_line(error)}"
            if address:
                raise RunError(
                    f"the Ray cluster at {address} cannot be joined ({cause}); check --ray.address, or RAY_ADDRESS"
                ) from error
            raise RunError(f"Ray cannot be started on this machine ({cause}); see `gagpo doctor`") from error

    @_explained
    def rollout(
        self, requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
    ) -> list[Episode]:
        self.fleet.revive()
        if self.args.vllm.enable_sleep:
            self.fleet.call("wake_up")
        episodes = self.fleet.play(requests, sampling, on_done)
        if self.args.vllm.enable_sleep:
            self.fleet.call("sleep")
        return episodes

    def _send_weights(self, engine: int) -> None:
        """Give an engine that was started again the policy's weights."""
        group = self.trainer.actor_model_group
        handle = self.fleet.handles[engine]
        ray.get(group.async_run_method(method_name="replace_engine", number=engine, handle=handle))

    @_explained
    def compute(self, rows: Sequence[TokenRow], columns: Collection[str]) -> dict[str, NDArray[np.float64]]:
        computed: dict[str, NDArray[np.float64]] = {}
        if LOG_PROB in columns:
            computed[LOG_PROB] = (
                torch.cat(self.trainer.log_probs(rows, self.trainer.actor_model_group)).double().numpy()
            )
        if self.settings.critic is not None:
            computed |= value_columns([value.float() for value in self.trainer.values(rows)], rows)
        missing = set(columns) - set(computed)
        if missing:
            raise ValueError(f"the distributed backend cannot compute {', '.join(sorted(missing))} in this run")
        return computed

    @_explained
    def update(self, rows: Sequence[TrainingRow], seed: int, *, policy: bool = True) -> dict[str, float]:
        return self.trainer.update(rows, seed, policy=policy)

    @_explained
    def sync(self) -> None:
        try:
            self.trainer.broadcast_to_vllm()
        except ray.exceptions.RayError:
            # The policy may have met an engine that died. On GPUs its ranks may then wait for one another.
            if compat.cuda_available() or not self.fleet.revive():
                raise
            self.trainer.broadcast_to_vllm()

    @_explained
    def env_stats(self) -> dict[str, float]:
        return self.fleet.stats()

    def stacks(self) -> str:
        return f"--- driver\n{own_stacks()}\n{stacks_of([*self._places, *self.fleet.places])}"

    def track(self, iteration: int, metrics: Mapping[str, float], *, evaluation: bool) -> None:
        self._trackers.track(iteration, metrics, evaluation=evaluation)

    @_explained
    def save_checkpoint(self, tag: str, state: dict[str, Any]) -> None:
        critic = self.trainer.critic_model_group
        if critic is not None:
            # First, because the policy's holds the loop's state and decides what a run resumes from.
            ray.get(critic.async_run_method(method_name="save_checkpoint", tag=tag))
        ray.get(
            self.trainer.actor_model_group.async_run_method(
                method_name="save_checkpoint", tag=tag, client_states={"loop": json.dumps(state), "tag": tag}
            )
        )

    @_explained
    def load_checkpoint(self) -> Restored | None:
        states = ray.get(self.trainer.actor_model_group.async_run_method(method_name="get_checkpoint_states"))[0]
        if not states:
            return None
        critic = self.trainer.critic_model_group
        if critic is not None:
            ray.get(critic.async_run_method(method_name="load_checkpoint", tag=states["tag"]))
        self.sync()
        return Restored(json.loads(states["loop"]))

    @_explained
    def export(self) -> None:
        ray.get(self.trainer.actor_model_group.async_save_model())
        if self.trainer.critic_model_group is not None:
            # OpenRLHF writes it only with --critic.save_value_network.
            ray.get(self.trainer.critic_model_group.async_save_model())

    def close(self) -> None:
        try:
            self._stop()
        finally:
            # Last, since a tracker may fail for want of a network or of space.
            self._trackers.close()

    def _stop(self) -> None:
        if not ray.is_initialized():
            return
        # What Ray has lost needs no end, and must not hide why the run ends.
        fleet, self._fleet = self._fleet, None
        with suppress(ray.exceptions.RayError):
            if fleet is not None:
                fleet.stop()
        with suppress(ray.exceptions.RayError):
            while self._groups:
                remove_placement_group(self._groups.popitem()[1])
        if self._owns_ray:
            ray.shutdown()
