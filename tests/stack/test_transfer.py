"""The routes by which weights travel on GPUs: vLLM's engines for them, with stand-ins for CUDA alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from openrlhf_gagpo.errors import RunError
from support.models import make_model
from support.real_stack import configuration, gap, play, policy_parameters, rows_of

PLACEMENTS = {
    "ipc": "--vllm.num_engines 2",
    "nccl": "--vllm.num_engines 2 --train.no_colocate_all --ref.num_gpus_per_node 2",
}


@pytest.fixture(scope="module")
def backend(
    request: pytest.FixtureRequest, ray_runtime: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A policy of two ranks and two engines that get its weights as on GPUs."""
    from openrlhf_gagpo.backends.distributed import backend as made
    from openrlhf_gagpo.backends.distributed import engine
    from openrlhf_gagpo.config.settings import backend_settings
    from support import cpu_transfer

    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(folder / "model", tied=request.param == "nccl")
    flags = f"{PLACEMENTS[request.param]} --actor.num_gpus_per_node 2 --ds.zero_stage 1 --algo.kl.init_coef 0"
    config = configuration(model, folder / "run", *flags.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "AgentRolloutActor", ray.remote(cpu_transfer.Engine))
        patch.setattr(made, "_POLICY", "support.cpu_transfer:Policy")
        started = made.DistributedBackend(backend_settings(config), config.namespace())
        try:
            started.start()
            yield started
        finally:
            started.close()


@pytest.mark.parametrize("backend", ["ipc", "nccl"], indirect=True)
def test_engines_get_the_weights_in_a_few_calls(backend: Any, request: pytest.FixtureRequest) -> None:
    from support import cpu_transfer

    weights = policy_parameters(backend)
    size = sum(weight.nbytes for weight in weights.values())
    episodes = play(backend, iteration=1)[::4]
    for seed in (1, 2):
        backend.update(rows_of(episodes, 12), seed=seed)
        assert gap(backend, episodes) > 1e-3
        backend.sync()
        for calls in ray.get([handle.calls_since.remote() for handle in backend.fleet.handles]):
            # Meeting takes one call, and only for the first sync.
            expected = ["init_weight_transfer_engine"] * (seed == 1) + ["start_weight_update", "finish_weight_update"]
            updates = calls.count("update_weights")
            assert calls == [*expected[:-1], *["update_weights"] * updates, expected[-1]]
            if "ipc" in request.node.name:
                assert size / cpu_transfer.BUFFER_BYTES <= updates <= len(weights) / 3
            else:
                assert updates == 1
        episodes = play(backend, iteration=seed + 1)[::4]
        assert gap(backend, episodes) <= 5e-6


@pytest.mark.parametrize("backend", ["ipc"], indirect=True)
def test_an_engine_that_was_started_again_gets_them_alone(backend: Any) -> None:
    engines = backend.fleet.handles
    backend.sync()
    ray.get([engine.calls_since.remote() for engine in engines])
    backend.trainer.actor_model_group.run("replace_engine", 1, engines[1])
    idle, given = ray.get([engine.calls_since.remote() for engine in engines])
    assert (idle, given[:2], given[-1]) == (
        [], ["init_weight_transfer_engine", "start_weight_update"], "finish_weight_update"
    )  # fmt: skip
    backend.sync()
    assert all(ray.get([engine.calls_since.remote() for engine in engines]))
    assert gap(backend, play(backend, iteration=9)) <= 5e-6


@pytest.mark.parametrize(
    ("backend", "step"), [("ipc", "start_weight_update"), ("nccl", "update_weights")], indirect=["backend"]
)
def test_an_engine_that_fails_to_receive_ends_the_run_with_its_cause(backend: Any, step: str) -> None:
    """The last test of each backend, some ranks and engines of which wait in vain from then on."""
    ray.get(backend.fleet.handles[1].fail_at.remote(step))
    started = time.monotonic()
    with pytest.raises(RunError, match="a worker failed with RuntimeError: no memory"):
        backend.sync()
    assert time.monotonic() - started < 20
