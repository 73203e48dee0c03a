"""One Ray runtime for all tests of the real stack, and tiny models to run on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from openrlhf_gagpo import hygiene

hygiene.apply()
os.environ["HF_HUB_OFFLINE"] = "1"
# Ray gives its dashboard 60 s to start and its nine processes 30 s to import; a busy machine takes longer.
os.environ["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = "200"
os.environ["RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT"] = "180"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session")
def ray_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A local Ray head with logical GPUs and a job server; drivers join it through ``RAY_ADDRESS``."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Its workers find what tests replace.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        # Without an address it would join a cluster that is running on this machine.
        context = ray.init(
            "local", num_cpus=8, num_gpus=6, include_dashboard=True, dashboard_port=0, log_to_driver=False
        )
    yield {"address": ray.get_runtime_context().gcs_address, "dashboard": f"http://{context.dashboard_url}"}
    ray.shutdown()


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """End the process group of this process, if it got one; DeepSpeed takes no second one."""
    yield
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone(process_group: None) -> Iterator[None]:
    """Room for a process group of one rank in this process, which only modules that ask for it have."""
    with pytest.MonkeyPatch.context() as patch:
        # The worker sets them.
        for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
            patch.setenv(name, "0")
        yield
