"""Placement of a run's processes on GPUs, as OpenRLHF does it, and the amount of work per iteration."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_gagpo import machine
from openrlhf_gagpo.backends import BACKENDS, SHARE
from openrlhf_gagpo.config.resolve import Config, uses_critic

__all__ = ["Bundles", "Plan", "Process", "place"]


@dataclass(frozen=True)
class Process:
    """``count`` processes of one kind, each on ``gpus_each`` GPUs."""

    name: str
    count: int
    gpus_each: float


@dataclass(frozen=True)
class Bundles:
    """A placement group: ``count`` bundles of one GPU and one CPU core, and the processes in them."""

    count: int
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Plan:
    """Placement and amount of work."""

    backend: str
    device: str
    """"cuda" or "cpu"."""
    nodes: int
    groups: tuple[Bundles, ...]
    """Empty for the local backend, which is one process."""
    environments: int
    """Environment processes of a node, which its engines share."""
    apart: bool
    """Whether these are nodes without GPUs, as far as the cluster has some, and all engines share them."""
    episodes: int
    """Training episodes per iteration."""
    rows_per_update: int
    epochs: int
    iterations: int

    @property
    def gpus(self) -> int:
        """Total number of GPUs; on a CPU they are logical ones, which only Ray counts."""
        return sum(group.count for group in self.groups)

    @property
    def updates(self) -> str:
        """Optimizer steps per iteration as a formula, because the number of rows is known only after the rollout."""
        return f"{self.epochs} x ceil(environment steps / {self.rows_per_update})"


def place(config: Config) -> Plan:
    """Return the plan of a run with ``config``, which need not have passed the checks."""
    local = BACKENDS[config.backend].one_process
    if local:
        wanted = config.train.device
        device = wanted if wanted != "auto" else ("cuda" if machine.has_cuda() else "cpu")
    else:
        # A cluster that is already running has its own devices, even if this machine has none.
        device = "cuda" if machine.has_cuda() or config.ray.address else "cpu"
    return Plan(
        backend=config.backend,
        device=device,
        nodes=1 if local else max(config.actor.num_nodes, 1),
        groups=() if local else _groups(config),
        environments=config.env.workers,
        apart=not local and config.env.placement == "ray",
        episodes=config.rollout.batch_size * config.rollout.n_samples_per_prompt,
        rows_per_update=config.train.batch_size,
        epochs=config.train.max_epochs,
        iterations=0 if config.eval_only else config.train.num_iterations,
    )


def _groups(config: Config) -> tuple[Bundles, ...]:
    workers = config.actor.num_nodes * config.actor.num_gpus_per_node
    references = config.ref.num_nodes * config.ref.num_gpus_per_node if config.algo.kl.init_coef > 0 else 0
    engines, per_engine = config.vllm.num_engines or 0, config.vllm.tensor_parallel_size
    all_shared = config.train.colocate_all
    models_shared = all_shared or config.train.colocate_actor_ref
    share = SHARE if models_shared else 1
    critics = config.critic.num_nodes * config.critic.num_gpus_per_node if uses_critic(config) else 0
    # Where both models share GPUs they share processes.
    policy = Process("policy and reference worker" if models_shared and references else "policy worker", workers, share)
    reference = Process("reference worker", references, 1)
    critic = Process("critic worker", critics, SHARE if all_shared else 1)
    engine = Process("vLLM engine", engines, per_engine * (SHARE if all_shared else 1))
    if all_shared:
        groups = [Bundles(workers, (policy, critic, engine))]
    elif models_shared:
        groups = [
            Bundles(workers, (policy,)),
            Bundles(critics, (critic,)),
            Bundles(engines * per_engine, (engine,)),
        ]
    else:
        groups = [
            Bundles(workers, (policy,)),
            Bundles(references, (reference,)),
            Bundles(critics, (critic,)),
            Bundles(engines * per_engine, (engine,)),
        ]
    present = [Bundles(group.count, tuple(p for p in group.processes if p.count)) for group in groups]
    return tuple(group for group in present if group.processes)
