"""The Ray cluster of a run, joined or started, and the GPUs that are reserved in it before any process starts."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import psutil
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from openrlhf_gagpo.backends.distributed import compat
from openrlhf_gagpo.errors import DivergenceError, RunError
from openrlhf_gagpo.machine import cores

__all__ = ["Cluster", "explained"]

_PLACEMENT_TIMEOUT_S = 300
_END_S = 0.5
"""Time that the processes of a cluster get to end by themselves: those that hold nothing of a run may take a minute."""
_GONE_S = 5.0
"""Time in which a killed process is gone."""
# Library settings that the workers share with the driver.
_FORWARDED = ("VLLM_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_", "NCCL_", "RAY_ENABLE", "DO_NOT_TRACK")


def explained(method: Callable[..., Any]) -> Callable[..., Any]:
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


class Cluster:
    """A Ray cluster and what the run holds of it.

    Args:
        arguments: OpenRLHF's arguments of the run.
        gpus: those that all processes of the run need.
    """

    def __init__(self, arguments: SimpleNamespace, gpus: int) -> None:
        self.args = arguments
        self.gpus = gpus
        self.started_here = False
        """Whether this run has started the cluster, and will end it."""
        self._groups: dict[str, Any] = {}
        self._started: set[psutil.Process] = set()

    def connect(self) -> None:
        """Join the cluster that the run names, or start one; a process that is in one stays there.

        Raises:
            RunError: neither is possible, or the cluster is too small; Ray itself would wait without limit.
        """
        if not ray.is_initialized():
            self._join_or_start()
        here = ray.cluster_resources().get("GPU", 0)
        if here < self.gpus:
            raise RunError(
                f"the run needs {self.gpus} GPUs and the Ray cluster has {here:g}: lower the --actor, --ref and --vllm "
                "counts, or start more nodes"
            )

    def _join_or_start(self) -> None:
        self.started_here = True
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": _worker_variables()},
            # The workers' output joins this process's, which a run keeps in its folder.
            "log_to_driver": True,
            "logging_level": logging.WARNING,
        }
        address = self.args.ray.address
        if not address:
            options["include_dashboard"] = False
            # Workers that Ray starts beforehand lack the run's variables, so it would start others in their place.
            os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
            if not compat.cuda_available():
                # Ray counts logical GPUs; every bundle also needs a logical core, even if the machine has fewer.
                gpus = self.args.ray.num_gpus or self.gpus
                options |= {"num_gpus": gpus, "num_cpus": max(cores(), gpus + 1)}
        try:
            with self._starting():
                # Without an address, Ray would join a cluster that somebody has started on this machine.
                ray.init(address=address or "local", **options)
        except Exception as error:  # of any class: a node that starts too slowly is a plain Exception
            cause = f"{type(error).__name__}: {_in_a_line(error)}"
            if address:
                raise RunError(
                    f"the Ray cluster at {address} cannot be joined ({cause}); check --ray.address, or RAY_ADDRESS"
                ) from error
            raise RunError(f"Ray cannot be started on this machine ({cause}); see `gagpo doctor`") from error

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """End what Ray has started if its start fails or is interrupted, and undo its handling of SIGTERM.

        Ray sets a handler that ends the process where it is, so that nothing would be closed in order.
        """
        before = _descendants(psutil.Process())
        handler = signal.getsignal(signal.SIGTERM)
        try:
            yield
            self._started = _descendants(psutil.Process()) - before
        except BaseException as error:
            started = _descendants(psutil.Process()) - before
            ray.shutdown()
            _end(started)
            if isinstance(error, SystemExit):  # Ray's handler was called.
                raise KeyboardInterrupt from error
            raise
        finally:
            signal.signal(signal.SIGTERM, handler)

    def reserve(self, *, shared: bool, critic: bool) -> None:
        """Reserve a placement group with one bundle per GPU for each set of processes that are on the same GPUs.

        Args:
            shared: whether the reference is on the policy's GPUs.
            critic: whether there is one.

        Raises:
            RunError: others hold what is needed; OpenRLHF's own reservations would wait for it without limit.
        """
        args = self.args
        sizes = {"policy": args.actor.num_nodes * args.actor.num_gpus_per_node}
        if not shared and args.algo.kl.init_coef > 0:
            sizes["reference"] = args.ref.num_nodes * args.ref.num_gpus_per_node
        if not args.train.colocate_all:
            sizes["engines"] = args.vllm.num_engines * args.vllm.tensor_parallel_size
            if critic:
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

    def group(self, name: str) -> Any:
        """Return the placement group of some processes; those without one of their own are on the policy's GPUs."""
        return self._groups.get(name, self._groups["policy"])

    def release(self) -> None:
        """Give back what was reserved, and end the cluster if this run has started it."""
        if not ray.is_initialized():
            return
        # What Ray has lost needs no end, and must not hide why the run ends.
        with suppress(ray.exceptions.RayError):
            while self._groups:
                remove_placement_group(self._groups.popitem()[1])
        if self.started_here:
            processes = self._started.union(*map(_descendants, self._started))
            ray.shutdown()
            _end(processes)


def _descendants(process: psutil.Process) -> set[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return set(process.children(recursive=True))
    return set()


def _end(processes: Iterable[psutil.Process]) -> None:
    """Wait until the processes have ended, and kill those that take too long."""
    _, alive = psutil.wait_procs(processes, timeout=_END_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_GONE_S)


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


def _in_a_line(error: BaseException) -> str:
    """Return the last line of an error's message, where Ray says what happened."""
    return " ".join(str(error).strip().split("\n")[-1].split())[:400].rstrip(".")
