"""The routes of weights to engines, and vLLM's engine process, in which our extension of its worker runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from openrlhf_gagpo.backends.distributed.routes import gpu_route
from openrlhf_gagpo.config.resolve import resolve

_ACTOR = """
import multiprocessing, os, time

def engine():
    import openrlhf_gagpo.backends.distributed.weights
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=engine).start()
"""


def test_it_ends_with_the_actor_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "actor.py").write_text(_ACTOR)
    actor = subprocess.Popen([sys.executable, str(tmp_path / "actor.py")], stdout=subprocess.PIPE, text=True)
    assert actor.stdout is not None
    engine = psutil.Process(int(actor.stdout.readline()))
    assert engine.ppid() == actor.pid
    actor.kill()
    actor.wait()
    _, alive = psutil.wait_procs([engine], timeout=10)
    assert not alive
    actor.stdout.close()


@pytest.mark.parametrize(
    ("flags", "route"),
    [
        ("--train.colocate_all", "ipc"),
        ("--train.no_colocate_all", "nccl"),
        ("--train.colocate_actor_ref", "nccl"),
        ("--train.colocate_all --vllm.sync_with_ray", "openrlhf"),
        ("--train.no_colocate_all --vllm.sync_backend gloo", "openrlhf"),
        ("--train.colocate_all --ds.tensor_parallel_size 2", "openrlhf"),
    ],
)
def test_weights_travel_by_vllms_routes_where_they_can(flags: str, route: str) -> None:
    assert gpu_route(resolve(["--env.name", "vault", *flags.split()]).namespace()) == route
