"""Real policy and critic workers of the distributed backend in forked processes, with no Ray around them.

One import serves all of them. Every process ends by kill -9, as that of a run that dies.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.paths import REPOSITORY
from support.transcripts import segments

__all__ = ["Case", "Outcome", "train"]

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
class Outcome:
    """What one rank had at the end."""

    metrics: list[dict[str, float]]
    """Of each iteration, without times."""
    policy: dict[str, Any]
    critic: dict[str, Any]
    sent: dict[str, Any]
    """The weights that an engine received."""


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
    import openrlhf_gagpo.backends.distributed.backend  # noqa: F401

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
    strategy, model = backend.strategy(), backend.args.actor.model_name_or_path
    policy, critic = (kind(case.ranks, rank, "127.0.0.1", port) for kind in (PolicyActorBase, CriticActorBase))
    policy.init_model_from_pretrained(strategy, model, ITERATIONS)
    critic.init_model_from_pretrained(strategy, critic_path, ITERATIONS)
    checkpoint, start = root / case.name, 0
    if part == "resumed":
        start = json.loads(policy.read_checkpoint(str(checkpoint)))["iteration"]
        critic.read_checkpoint(str(checkpoint))
    metrics = []
    for iteration in range(start + 1, ITERATIONS + 1):
        _hand_over(backend, policy, critic, case.ranks, rank, iteration)
        row = critic.fit() | policy.fit()
        metrics.append({name: value for name, value in row.items() if not name.startswith("time/")})
        if part == "whole" and iteration == SAVED:
            policy.write_checkpoint(str(checkpoint), json.dumps({"iteration": iteration}))
            critic.write_checkpoint(str(checkpoint), "")
    outcome = Outcome(metrics, policy.parameters(), critic.parameters(), _sent(policy))
    torch.save(vars(outcome), root / f"{case.name}-{part}-{rank}.pt")
    if part == "whole":
        policy.write_model(str(root / f"{case.name}_hf"))


def _hand_over(backend: Any, policy: Any, critic: Any, ranks: int, rank: int, iteration: int) -> None:
    """Give this rank its part of an iteration's recorded rows, as the driver does."""
    from openrlhf_gagpo.backends.distributed import experience

    class Kept:
        """A group of workers of which this process is one."""

        def __init__(self, worker: Any) -> None:
            others = SimpleNamespace(plan=SimpleNamespace(remote=lambda steps: None))
            own = SimpleNamespace(plan=SimpleNamespace(remote=worker.plan))
            self._actor_handlers = [own if number == rank else others for number in range(ranks)]

    experience.ray = SimpleNamespace(get=lambda refs: refs)  # type: ignore[attr-defined]
    maker = object.__new__(experience.StepExperienceMaker)
    maker.args = backend.args
    maker.tokenizer = SimpleNamespace(pad_token_id=0)
    maker.actor_model_group, maker.critic_model_group = Kept(policy), Kept(critic)
    rows = segments(_WORDS, (9, 4, 6, 1, 12, 3, 8), seed=iteration)
    plan = backend.settings.batches.plan_training(rows, ranks, iteration)
    maker.hand_over_values(rows, plan)
    maker.hand_over(rows, plan, [row.sampling_log_probs for row in rows], None)


def _sent(policy: Any) -> dict[str, Any]:
    """Let the policy send its weights to an engine, and return what arrives there; every rank has to take part."""
    from safetensors.torch import load

    from openrlhf_gagpo.backends.distributed import actors

    received: dict[str, Any] = {}
    actors.ray = SimpleNamespace(get=lambda refs: refs)  # type: ignore[attr-defined]
    arrive = SimpleNamespace(remote=lambda path: received.update(load(Path(path).read_bytes())))
    reset = SimpleNamespace(remote=lambda: None)
    policy.trainer.vllm_engines = [SimpleNamespace(load_weight_file=arrive, reset_prefix_cache=reset)]
    policy.trainer.broadcast_to_vllm()
    return received
