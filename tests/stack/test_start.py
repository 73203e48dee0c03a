"""What stands in the way of a distributed run before its models load: one sentence each, and nothing left reserved."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings
from openrlhf_gagpo.errors import DivergenceError, RunError
from openrlhf_gagpo.training.backend import Backend
from support.models import model_folder

Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes backends of runs whose policy, reference and engine have a logical GPU each."""
    from openrlhf_gagpo.backends.distributed.backend import DistributedBackend

    model = model_folder(tmp_path / "model")

    def backend(*extra: str) -> Any:
        words = f"--env.name vault --actor.model_name_or_path {model} --run_dir {tmp_path / 'run'}"
        gpus = "--actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --vllm.num_engines 1"
        config: Any = resolve([*words.split(), *gpus.split(), *extra])
        return DistributedBackend(backend_settings(config), config.namespace())

    return backend


@pytest.fixture
def module() -> Any:
    from openrlhf_gagpo.backends.distributed import cluster

    return cluster


@pytest.mark.parametrize("together", [False, True], ids=["apart", "colocated"])
def test_a_cluster_whose_gpus_others_hold_is_named_before_anything_loads(
    ray_runtime: dict[str, str], make: Make, module: Any, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    import ray
    from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

    monkeypatch.setattr(module, "_PLACEMENT_TIMEOUT_S", 2)
    free = int(ray.available_resources()["GPU"])
    held = placement_group([{"GPU": 1}] * free)
    assert held.wait(30)
    before = {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"}
    backend = make("--train.colocate_all") if together else make()
    count = 1 if together else 3
    try:
        with pytest.raises(RunError, match=rf"could not reserve {count} bundles .* within 2 s: another job") as stop:
            backend.start()
        assert "\n" not in str(stop.value)
        assert backend._fleet is None
    finally:
        backend.close()
        after = {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"}
        remove_placement_group(held)
    assert after == before


@pytest.mark.parametrize(
    ("error", "address", "parts"),
    [
        (ConnectionError("nothing\nthere"), "10.0.0.9:6379", ["10.0.0.9:6379 cannot be joined", "there", "--ray.addr"]),
        (ValueError("a wrong address."), "auto", ["auto cannot be joined", "ValueError: a wrong address)"]),
        (RuntimeError("no port is free"), None, ["cannot be started on this machine", "no port is free", "doctor"]),
    ],
)
def test_a_ray_that_cannot_be_joined_or_started_is_one_sentence(
    make: Make,
    module: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    address: str | None,
    parts: list[str],
) -> None:
    asked: list[str] = []
    started: list[psutil.Popen] = []

    def init(*, address: str, **_: object) -> None:
        asked.append(address)
        started.append(psutil.Popen(["sleep", "1000"]))
        raise error

    monkeypatch.setattr(module.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(module.ray, "init", init)
    # Of the runtime that all tests share.
    monkeypatch.setattr(module.ray, "shutdown", lambda: None)
    monkeypatch.setattr(module, "_END_S", 0.1)
    backend = make(*(["--ray.address", address] if address else []))
    with pytest.raises(RunError) as stop:
        backend.start()
    backend.close()
    assert [part for part in parts if part not in str(stop.value)] == [], stop.value
    assert "\n" not in str(stop.value)
    # Not None, with which Ray would join any cluster that it finds on this machine.
    assert asked == [address or "local"]
    # What it had started by then is gone.
    assert not started[0].is_running()


def test_sigterm_while_ray_starts_is_an_interrupt(make: Make, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray sets a handler that would end the process where it is, and leaves it."""
    started: list[psutil.Popen] = []

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        started.append(psutil.Popen(["sleep", "1000"]))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(module.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(module.ray, "init", init)
    monkeypatch.setattr(module.ray, "shutdown", lambda: None)
    monkeypatch.setattr(module, "_END_S", 0.1)
    backend = make()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        backend.start()
    backend.close()
    assert not started[0].is_running()
    assert signal.getsignal(signal.SIGTERM) == handler


def test_whatever_ray_reports_is_one_sentence_with_class_and_cause(
    make: Make, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(_: object) -> None:
        raise module.ray.exceptions.ActorUnavailableError("lost\nthe node is gone.", None)

    monkeypatch.setattr(module.ray, "get", get)
    backend = make()
    group = SimpleNamespace(async_save_model=lambda: [])
    backend._trainer = SimpleNamespace(actor_model_group=group, critic_model_group=None)
    with pytest.raises(RunError, match=r"a worker failed with ActorUnavailableError: the node is gone.* \(its") as stop:
        backend.export()
    assert "\n" not in str(stop.value)
    # These do nothing but what may fail unnoticed, or that Ray takes no part in.
    calls = {name for name in vars(Backend) if not name.startswith("_")} - {"close", "stacks", "track"}
    assert {name for name in calls if not hasattr(getattr(type(backend), name), "__wrapped__")} == set()


def test_a_worker_that_stops_for_its_gradients_says_so_itself(
    make: Make, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        error = DivergenceError("the gradient is not finite; lower the learning rate")
        raise module.ray.exceptions.RayTaskError("fit", "a long trace", error)

    backend = make()
    backend._trainer = SimpleNamespace(update=fail)
    with pytest.raises(DivergenceError, match=r"^the gradient is not finite; lower the learning rate$"):
        backend.update([], 0)
