"""Real policy and critic workers of the distributed backend in forked processes, with no Ray around them.

One import serves all of them. Every process ends by kill -9, as that of a run that dies.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.paths import REPOSITORY
from support.transcripts import segments

__all__ = ["Case", "FullDisk", "Outcome", "train"]

ITERATIONS = 4
SAVED = 2
"""The iteration after which a checkpoint is written."""
_WORDS = 20


@dataclass(frozen=True)
class Case:
    """A number of ranks and flags of a run of ``ITERATIONS`` updates, with which it is run whole and resumed."""

    name: str
    ranks: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class FullDisk:
    """What came of saving after iteration 1, and of attempts after iteration 2 for which the disk had no room."""

    said: list[str]
    restored: dict[str, Any] | None
    """The loop's state in the checkpoint that was loaded then."""
    names: list[str]
    """Of all that was there then."""


@dataclass(frozen=True)
class Outcome:
    """What one rank had at the end."""

    metrics: list[dict[str, float]]
    """Of each iteration, without times."""
    policy: dict[str, Any]
    critic: dict[str, Any]
    sent: dict[str, Any]
    """The weights that an engine received."""
    skipped: dict[str, float]
    """Share of the steps of a last iteration that were skipped, in which one row's gradient is not finite, by model."""
    spared: bool
    """Whether that iteration changed nothing."""
    offloaded: bool
    """Whether DeepSpeed kept the optimizer's state in the machine's memory."""
    full_disk: FullDisk | None


def train(folder: Path, cases: Sequence[Case]) -> dict[str, tuple[list[Outcome], list[Outcome]]]:
    """Return for each case the outcomes of its ranks in the whole run and in the resumed one."""
    import torch

    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    code = f"from support.forked_workers import _main; _main({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]

    def outcomes(case: Case, part: str) -> list[Outcome]:
        files = [folder / f"{case.name}-{part}-{rank}.pt" for rank in range(case.ranks)]
        return [Outcome(**torch.load(file, weights_only=False)) for file in files]

    return {case.name: (outcomes(case, "whole"), outcomes(case, "resumed")) for case in cases}


def _main(folder: str) -> None:
    # Before any process is forked, since it takes longer than all that they do.
    import openrlhf_gagpo.backends.distributed.backend
    import openrlhf_gagpo.backends.distributed.critic  # noqa: F401

    root = Path(folder)
    for given in json.loads((root / "cases.json").read_text()):
        case = Case(**given)
        for part in ("whole", "resumed"):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            ranks = [_fork(root, case, part, rank, port) for rank in range(case.ranks)]
            ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
            if any(status != -signal.SIGKILL for status in ended):
                raise RuntimeError(f"the {part} run of {case.name} failed: {ended}")


def _fork(root: Path, case: Case, part: str, rank: int, port: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _work(root, case, part, rank, port)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os.kill(os.getpid(), signal.SIGKILL)
    return pid


def _work(root: Path, case: Case, part: str, rank: int, port: int) -> None:
    import torch

    from openrlhf_gagpo.backends.distributed.actors import PolicyActorBase
    from openrlhf_gagpo.backends.distributed.backend import DistributedBackend
    from openrlhf_gagpo.backends.distributed.critic import CriticActorBase
    from openrlhf_gagpo.config.settings import backend_settings
    from support.real_stack import configuration

    critic_path = str(root / "critic")
    config = configuration(root / "model", root / "run", "--critic.model_name_or_path", critic_path, *case.flags)
    backend = DistributedBackend(backend_settings(config), config.namespace())
    model = backend.args.actor.model_name_or_path
    policy, critic = (kind(case.ranks, rank, "127.0.0.1", port) for kind in (PolicyActorBase, CriticActorBase))
    policy.load(backend.args, [], model, ITERATIONS)
    critic.load(backend.args, [], critic_path, ITERATIONS)
    checkpoint, start = root / case.name, 0
    if part == "resumed":
        start = json.loads(policy.read_checkpoint(str(checkpoint)))["iteration"]
        critic.read_checkpoint(str(checkpoint))
    metrics = []
    for iteration in range(start + 1, ITERATIONS + 1):
        of_critic, of_policy = _steps(backend, case.ranks, rank, iteration)
        row = critic.train(of_critic) | policy.train(of_policy)
        metrics.append({name: value for name, value in row.items() if not name.startswith("time/")})
        if part == "whole" and iteration == SAVED:
            policy.write_checkpoint(str(checkpoint), json.dumps({"iteration": iteration}))
            critic.write_checkpoint(str(checkpoint), "")
    offloaded = all(getattr(model.optimizer, "cpu_offload", False) for model in (policy.actor.model, critic.critic))
    weights = policy.parameters(), critic.parameters(), _sent(policy)
    of_critic, of_policy = _steps(backend, case.ranks, rank, 0, faulty=True)
    row = critic.train(of_critic) | policy.train(of_policy)
    skipped = {name: row[f"{name}/skipped_steps"] / len(of_policy) for name in ("policy", "critic")}
    spared = all(
        torch.equal(value, kept[name])
        for model, kept in ((policy, weights[0]), (critic, weights[1]))
        for name, value in model.parameters().items()
    )
    # The other ranks would wait for the one that fails.
    alone = part == "whole" and case.ranks == 1
    full_disk = _full_disk(policy, backend.args, root / f"{case.name}_full") if alone else None
    outcome = Outcome(metrics, *weights, skipped, spared, offloaded, full_disk)
    torch.save(vars(outcome), root / f"{case.name}-{part}-{rank}.pt")
    if part == "whole":
        policy.write_model(str(root / f"{case.name}_hf"))


def _steps(
    backend: Any, ranks: int, rank: int, iteration: int, *, faulty: bool = False
) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return this rank's part of an iteration over recorded rows, for the critic and the policy, as the driver does.

    Args:
        faulty: whether one row has credit that is not finite; all rows are then in one step.
    """
    from openrlhf_gagpo.backends.distributed.batches import critic_steps, policy_steps

    batches = backend.settings.batches
    rows = segments(_WORDS, (9, 4, 6, 1, 12, 3, 8), seed=iteration)
    if faulty:
        rows = [*rows[1:20], replace(rows[0], advantage=float("nan"), value_target=float("inf"))]
    of_critic = critic_steps(rows, lambda read: batches.plan_training(read, ranks, iteration), 0, ranks)
    plan = batches.plan_training(rows, ranks, iteration)
    of_policy = policy_steps(rows, plan, [row.sampling_log_probs for row in rows], None, 0, ranks)
    return of_critic[rank], of_policy[rank]


def _sent(policy: Any) -> dict[str, Any]:
    """Let the policy send its weights to an engine, and return what arrives there; every rank has to take part."""
    from safetensors.torch import load

    from openrlhf_gagpo.backends.distributed import workers

    received: dict[str, Any] = {}
    workers.ray = SimpleNamespace(get=lambda refs, timeout: refs)  # type: ignore[attr-defined]
    arrive = SimpleNamespace(remote=lambda path: received.update(load(Path(path).read_bytes())))
    policy.trainer.vllm_engines = [SimpleNamespace(load_weight_file=arrive)]
    policy.trainer.broadcast_to_vllm()
    return received


def _full_disk(policy: Any, arguments: SimpleNamespace, folder: Path) -> FullDisk:
    """Let the driver save where there is room, and then a checkpoint and a model where there is none."""
    import ray

    from openrlhf_gagpo.backends.distributed import workers
    from openrlhf_gagpo.backends.distributed.checkpoints import WorkerCheckpoints
    from openrlhf_gagpo.training.settings import CheckpointSettings

    def get(refs: Sequence[Any], timeout: float) -> list[Any]:
        try:
            return [ref() for ref in refs]
        except Exception as error:
            sent = ray.exceptions.RayTaskError("write", traceback.format_exc(), error).to_bytes()
            raise ray.exceptions.RayError.from_bytes(sent).as_instanceof_cause() from None

    workers.ray = SimpleNamespace(get=get, exceptions=ray.exceptions)  # type: ignore[attr-defined]
    group: Any = SimpleNamespace(
        role="policy",
        copies=1,
        limit_s=60.0,
        async_run_method=lambda method, *given: [partial(getattr(policy, method), *given)],
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = []
    for iteration, room, state, model in ((1, soft, True, True), (2, 1000, True, False), (2, 1000, False, True)):
        arguments.ckpt.disable_ds, arguments.ckpt.save_hf = not state, model
        checkpoints = WorkerCheckpoints(CheckpointSettings(folder, folder, 2), arguments, group, None)
        # What exceeds it fails as on a full disk: Python ignores the signal.
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            checkpoints.save(f"global_step{iteration}", {"iteration": iteration})
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    restored = checkpoints.load()
    return FullDisk(said, None if restored is None else restored.state, sorted(path.name for path in folder.iterdir()))
