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
from transformers import AutoTokenizer

from openrlhf_gagpo.backends import SHARE
from openrlhf_gagpo.backends.distributed import compat
from openrlhf_gagpo.backends.distributed.checkpoints import WorkerCheckpoints
from openrlhf_gagpo.backends.distributed.cluster import Cluster, explained
from openrlhf_gagpo.backends.distributed.controller import StepTrainer
from openrlhf_gagpo.backends.distributed.engine import create_engines
from openrlhf_gagpo.backends.distributed.fleet import EngineFleet
from openrlhf_gagpo.backends.distributed.routes import Route
from openrlhf_gagpo.backends.distributed.stacks import Place, stacks_of
from openrlhf_gagpo.backends.distributed.workers import WorkerGroup, Workers, wait_all
from openrlhf_gagpo.backends.trackers import Trackers
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.training.backend import OnStage, Restored, unnoticed
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow
from openrlhf_gagpo.training.settings import BackendSettings, TrackerSettings
from openrlhf_gagpo.training.table import LOG_PROB
from openrlhf_gagpo.training.values import value_columns
from openrlhf_gagpo.training.watchdog import own_stacks

__all__ = ["DistributedBackend"]

# What the workers are made of; the driver does not import it.
_POLICY = "openrlhf_gagpo.backends.distributed.actors:PolicyActorBase"
_REFERENCE = "openrlhf_gagpo.backends.distributed.actors:ReferenceActorBase"
_CRITIC = "openrlhf_gagpo.backends.distributed.critic:CriticActorBase"


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
        self._route: Route = "file"
        self._workers: list[Workers] = []
        """Processes of models that are trained or read."""
        self._places: list[Place] = []
        """Where they are."""
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
        together = args.train.colocate_all
        shared = together or args.train.colocate_actor_ref
        self._cluster.reserve(shared=shared, critic=self.settings.critic is not None)
        model, iterations = args.actor.model_name_or_path, self.settings.iterations
        fast = self.settings.use_fast_tokenizer
        # Everything starts at once, so that imports and model loading, which dominate, overlap.
        fleet = self._fleet = EngineFleet(
            create_engines(args, self._cluster.group("engines"), shared=together),
            self.settings.rollout,
            model,
            fast_tokenizer=fast,
            stall_s=self.settings.stall_timeout,
            limit_s=self.settings.worker_timeout,
        )
        asleep = fleet.begin("sleep") if args.vllm.enable_sleep else []
        policy, reference, critic = self._make_groups(shared, together)
        loads = []
        if reference is not None:
            # First, since the policy may wait for the engines, and draws from the random state that its own load sets.
            loads.append((reference, reference.async_run_method("load", args, asleep, model)))
        loads.append((policy, policy.async_run_method("load", args, asleep, model, iterations, fleet.handles)))
        if critic is not None:
            loads.append(
                (critic, critic.async_run_method("load", args, asleep, args.critic.model_name_or_path, iterations))
            )
        self._trainer = StepTrainer(args, policy, critic, reference, self.settings.batches, _pad_id(model, fast))
        wait_all(loads, "the start")
        self._route = policy.run("weight_route")[0]
        # A group of NCCL holds the engines that it was made with; and a policy that is being updated has no weights to
        # give.
        if (together or self._route == "file") and args.train.overlap == "none":
            fleet.on_restart = self._send_weights
        self._places = [place for workers in self._workers for place in workers.places()]
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

    def _make_groups(self, shared: bool, together: bool) -> tuple[WorkerGroup, WorkerGroup | None, WorkerGroup | None]:
        """Start the workers of the policy, and of the reference and the critic of a run that has them.

        Args:
            shared: whether the reference is on the policy's GPUs, where it is in the policy's processes too. A critic
                has its own, to be trained at the same time.
            together: whether the critic is on these GPUs.
        """
        args = self.args
        copies = args.ds.ring_attn_size * args.ds.tensor_parallel_size

        def start(name: str, counts: Any, targets: dict[str, str], shares: bool) -> Workers:
            size = counts.num_nodes * counts.num_gpus_per_node
            share = SHARE if shares else 1
            placement = self._cluster.group(name)
            workers = Workers(targets, size, placement, share=share, limit_s=self.settings.worker_timeout)
            self._workers.append(workers)
            return workers

        has_reference = args.algo.kl.init_coef > 0
        beside = {"reference": _REFERENCE} if has_reference and shared else {}
        of_policy = start("policy", args.actor, {"policy": _POLICY} | beside, shared)
        policy = WorkerGroup("policy", of_policy, copies=copies)
        reference = critic = None
        if has_reference:
            of_reference = of_policy if shared else start("reference", args.ref, {"reference": _REFERENCE}, False)
            reference = WorkerGroup("reference", of_reference, copies=copies)
        if self.settings.critic is not None:
            of_critic = start("critic", args.critic, {"critic": _CRITIC}, together)
            critic = WorkerGroup("critic", of_critic, copies=copies)
        return policy, reference, critic

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
        self.trainer.actor_model_group.run("replace_engine", engine, self.fleet.handles[engine])

    @explained
    def compute(self, rows: Sequence[TokenRow], columns: Collection[str]) -> dict[str, NDArray[np.float64]]:
        computed: dict[str, NDArray[np.float64]] = {}
        if LOG_PROB in columns:
            computed[LOG_PROB] = torch.cat(self.trainer.log_probs(rows)).double().numpy()
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
        if self.fleet.on_restart is not None:
            # Those that died since the rollout. In the middle of a transfer most routes could not replace them.
            self.fleet.revive()
        if self.args.vllm.enable_sleep:
            # The weights alone; there is room for the cache when a rollout begins.
            self.fleet.call("wake_up", tags=["weights"])
        try:
            self.trainer.send_weights()
        except ray.exceptions.RayError:
            # The policy may have met an engine that died. By the other routes its ranks then wait for one another.
            if self._route != "file" or not self.fleet.revive():
                raise
            self.trainer.send_weights()

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
        self.trainer.actor_model_group.run("save_model")
        if self.trainer.critic_model_group is not None:
            # OpenRLHF writes it only with --critic.save_value_network.
            self.trainer.critic_model_group.run("save_model")

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


def _pad_id(model: str, fast: bool) -> int:
    """Return the token with which batches are filled up: the tokenizer's, or its end token."""
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True, use_fast=fast)
    pad_id: int = tokenizer.eos_token_id if tokenizer.pad_token is None else tokenizer.pad_token_id
    return pad_id
