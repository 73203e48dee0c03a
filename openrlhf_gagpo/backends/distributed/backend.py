"""The distributed backend: OpenRLHF's workers and our rollout engines, driven from one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from openrlhf.trainer.ray.launcher import RayActorGroup
from openrlhf.utils import get_tokenizer

from openrlhf_gagpo.backends import SHARE
from openrlhf_gagpo.backends.distributed import compat
from openrlhf_gagpo.backends.distributed.actors import PolicyActor, ReferenceActor, StepStrategy
from openrlhf_gagpo.backends.distributed.checkpoints import WorkerCheckpoints
from openrlhf_gagpo.backends.distributed.cluster import Cluster, explained
from openrlhf_gagpo.backends.distributed.controller import StepTrainer
from openrlhf_gagpo.backends.distributed.critic import CriticActor
from openrlhf_gagpo.backends.distributed.engine import create_engines
from openrlhf_gagpo.backends.distributed.fleet import EngineFleet
from openrlhf_gagpo.backends.distributed.stacks import Place, stacks_of
from openrlhf_gagpo.backends.trackers import Trackers
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.training.backend import OnStage, Restored, unnoticed
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow
from openrlhf_gagpo.training.settings import BackendSettings, TrackerSettings
from openrlhf_gagpo.training.table import LOG_PROB
from openrlhf_gagpo.training.values import value_columns
from openrlhf_gagpo.training.watchdog import own_stacks

__all__ = ["DistributedBackend"]


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
        # OpenRLHF's workers would load a checkpoint of theirs by themselves.
        self.args.ckpt.load_enable = False
        self._trackers = Trackers(TrackerSettings())
        self._fleet: EngineFleet | None = None
        self._trainer: StepTrainer | None = None
        self._places: list[Place] = []
        """Of the workers that are not engines."""
        self._cluster = Cluster(arguments, settings.gpus)

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

    @explained
    def start(self, on_stage: OnStage = unnoticed) -> dict[str, str]:
        args = self.args
        self._trackers = Trackers(self.settings.trackers)
        started = time.perf_counter()
        self._cluster.connect()
        connected = time.perf_counter()
        on_stage("Ray started" if self._cluster.started_here else "Ray joined", connected - started)
        strategy = self.strategy()
        together = args.train.colocate_all
        shared = together or args.train.colocate_actor_ref
        self._cluster.reserve(shared=shared, critic=self.settings.critic is not None)
        # Everything starts at once, so that imports and model loading, which dominate, overlap.
        specs = create_engines(args, self._cluster.group("engines"), shared=together)
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

    def strategy(self) -> StepStrategy:
        """Return what tells every worker how to train; a worker completes its copy."""
        args = self.args
        return StepStrategy(
            seed=args.train.seed,
            full_determinism=args.train.full_determinism_enable,
            max_norm=args.actor.max_norm,
            micro_train_batch_size=args.train.micro_batch_size,
            train_batch_size=args.train.batch_size,
            zero_stage=args.ds.zero_stage,
            args=args,
        )

    def _actors(self, name: str, counts: Any, actor_class: Any, shared: bool) -> RayActorGroup:
        return RayActorGroup(
            counts.num_nodes,
            counts.num_gpus_per_node,
            actor_class,
            pg=self._cluster.group(name),
            num_gpus_per_actor=SHARE if shared else 1,
            duplicate_actors=self.args.ds.ring_attn_size * self.args.ds.tensor_parallel_size,
        )

    @explained
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

    @explained
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

    @explained
    def update(self, rows: Sequence[TrainingRow], seed: int, *, policy: bool = True) -> dict[str, float]:
        return self.trainer.update(rows, seed, policy=policy)

    @explained
    def sync(self) -> None:
        try:
            self.trainer.broadcast_to_vllm()
        except ray.exceptions.RayError:
            # The policy may have met an engine that died. On GPUs its ranks may then wait for one another.
            if compat.cuda_available() or not self.fleet.revive():
                raise
            self.trainer.broadcast_to_vllm()

    @explained
    def env_stats(self) -> dict[str, float]:
        return self.fleet.stats()

    def stacks(self) -> str:
        return f"--- driver\n{own_stacks()}\n{stacks_of([*self._places, *self.fleet.places])}"

    def track(self, iteration: int, metrics: Mapping[str, float], *, evaluation: bool) -> None:
        self._trackers.track(iteration, metrics, evaluation=evaluation)

    @explained
    def save_checkpoint(self, tag: str, state: dict[str, Any]) -> None:
        self._checkpoints().save(tag, state)

    @explained
    def load_checkpoint(self) -> Restored | None:
        restored = self._checkpoints().load()
        if restored is not None:
            self.sync()
        return restored

    def _checkpoints(self) -> WorkerCheckpoints:
        trainer = self.trainer
        groups = trainer.actor_model_group, trainer.critic_model_group
        return WorkerCheckpoints(self.settings.checkpoints, self.args, *groups)

    @explained
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
        fleet, self._fleet = self._fleet, None
        # Engines that Ray has lost need no end, and must not hide why the run ends.
        with suppress(ray.exceptions.RayError):
            if fleet is not None and ray.is_initialized():
                fleet.stop()
        self._cluster.release()
