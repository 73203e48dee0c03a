"""The start of a distributed run: what stands in its way, what each process imports, and groups of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
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
from support.transcripts import apart, segments

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
    # All of them, also those that a test before this one is giving back.
    held = placement_group([{"GPU": 1}] * int(ray.cluster_resources()["GPU"]))
    assert held.wait(60)
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


def test_whatever_ray_reports_is_one_sentence_with_class_and_cause(make: Make, module: Any) -> None:
    def get(*_: object, **__: object) -> None:
        raise module.ray.exceptions.ActorUnavailableError("lost\nthe node is gone.", None)

    backend = make()
    backend._trainer = SimpleNamespace(actor_model_group=SimpleNamespace(run=get), critic_model_group=None)
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


def test_the_driver_imports_only_what_it_uses() -> None:
    code = "import sys, openrlhf_gagpo.backends.distributed.backend; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "openrlhf.trainer.ray.vllm_engine" in modules
    assert {"deepspeed", "vllm", "peft", "datasets"} & modules == set()


def test_vllm_is_imported_when_something_of_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from openrlhf_gagpo.backends.distributed import compat

    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    with compat._vllm_later():
        import vllm as later
        from vllm.utils import random_uuid
    assert not hasattr(later, "__file__")
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return SimpleNamespace(__version__="1.2", random_uuid=lambda: "id")

    monkeypatch.setattr(compat.importlib, "import_module", load)
    assert (later.__version__, random_uuid()) == ("1.2", "id")
    assert asked == ["vllm", "vllm.utils"]
    # Ray sends it with the classes that use it; who gets them has the real one.
    assert later.__reduce__() == (load, ("vllm",))


@pytest.mark.parametrize(
    ("stage", "order"),
    [("2", ["read", ["asleep"], "moved"]), ("3", [["asleep"], "read", [], "moved"])],
    ids=["read before", "made on the GPU"],
)
def test_a_model_takes_gpu_memory_when_the_engines_sleep(
    make: Make, monkeypatch: pytest.MonkeyPatch, stage: str, order: list[Any]
) -> None:
    from openrlhf_gagpo.backends.distributed import actors, strategy

    done: list[Any] = []
    monkeypatch.setattr(strategy, "answers", lambda refs, *_: done.append(refs))
    monkeypatch.setattr(strategy.DeepspeedStrategy, "prepare", lambda *_: done.append("moved"))

    class Model(actors.ModelRank):
        def init_model_from_pretrained(self, strategy: Any, *args: Any) -> None:
            done.append("read")
            strategy.prepare(*args)

    Model().load(make("--ds.zero_stage", stage).args, ["asleep"], "model")
    assert done == order


class Echo:
    """Stands for one of OpenRLHF's model actors."""

    def __init__(self, world_size: int, rank: int, address: None, port: None) -> None:
        self.place = (rank, world_size)
        self.title = "new"

    def name(self, title: str) -> None:
        self.title = title

    def named(self) -> str:
        return self.title

    def get_master_addr_port(self) -> tuple[str, int]:
        return f"host-of-{self.place[0]}", 5000

    def facts(self) -> tuple[Any, ...]:
        return (*self.place, os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])

    def echo(self, part: str, *, times: int) -> str:
        return f"{self.place[0]}: {part * times}"

    def hang(self) -> None:
        import ray

        raise ray.exceptions.GetTimeoutError("some object is not ready")


class Handle:
    """A handle of an actor in this process: a call returns a function, whose result is the answer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=partial(partial, getattr(self._actor, method)))


def test_groups_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which rank gets and answers what; real processes are in the tests of the backend."""
    from openrlhf_gagpo.backends.distributed import workers

    def options(**reserved: Any) -> Any:
        assert reserved["num_cpus"] == reserved["num_gpus"] == 0.2
        return SimpleNamespace(remote=lambda *args: Handle(workers.WorkerBase(*args)))

    def get(refs: list[Any], timeout: float) -> list[Any]:
        return [ref() for ref in refs]

    monkeypatch.setattr(workers, "_Worker", SimpleNamespace(options=options))
    monkeypatch.setattr(workers, "listen", lambda role: role)
    monkeypatch.setattr(workers.ray, "put", lambda value: value)
    monkeypatch.setattr(workers.ray, "get", get)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")

    def start(*roles: str) -> Any:
        return workers.Workers(dict.fromkeys(roles, f"{__name__}:Echo"), 2, None, share=0.2, limit_s=60)

    shared, own = start("policy", "reference"), start("critic")
    policy, reference = (workers.WorkerGroup(role, shared) for role in ("policy", "reference"))
    critic = workers.WorkerGroup("critic", own, copies=2)
    assert (policy.ranks, reference.ranks, critic.ranks) == (2, 2, 1)
    assert policy.run("echo", "x", times=3) == ["0: xxx", "1: xxx"]
    policy.run("name", "trained")
    assert (policy.run("named"), reference.run("named")) == (["trained"] * 2, ["new"] * 2)
    assert policy.handles is reference.handles
    sent = [(policy, policy.scatter("echo", ["a", "b"], times=2)), (critic, critic.scatter("echo", ["c"], times=1))]
    # Both copies of the critic's rank have its part; one of them answers.
    assert [ref() for ref in sent[1][1]] == ["0: c", "1: c"]
    assert workers.wait_all(sent, "the echo") == [["0: aa", "1: bb"], ["0: c"]]
    with pytest.raises(RunError, match=r"^the hang of the policy workers did not end within 60 s; raise --train\.w"):
        policy.run("hang")
    # All ranks meet at the address of the first.
    assert [handle.join.remote(("host-of-0", 5000))() for handle in policy.handles] == ["policy and reference"] * 2
    assert policy.run("facts") == [(rank, 2, "host-of-0", "5000") for rank in range(2)]


class Readers:
    """Stands for the ranks of a model whose output for a token is the token itself."""

    def __init__(self, role: str, ranks: int = 1) -> None:
        self.role, self.ranks, self.limit_s = role, ranks, 60.0
        self.released: set[bool] = set()
        self.shards: list[list[Any]] = []

    def scatter(self, method: str, shards: list[Any], *, release: bool) -> list[Any]:
        assert method == "forward_passes"
        self.released.add(release)
        self.shards = shards
        return [[sequences[:, 1:] for sequences, _, _ in shard] for shard in shards]

    def wait(self, refs: list[Any], what: str) -> list[Any]:
        return refs


@pytest.mark.parametrize(
    ("flags", "released"),
    [
        ("--train.colocate_all", False),
        ("--train.colocate_all --algo.advantage.estimator gae", True),
        ("--algo.advantage.estimator gae --critic.num_gpus_per_node 1", False),
    ],
)
def test_memory_is_given_back_where_a_critic_shares_the_gpus(make: Make, flags: str, released: bool) -> None:
    """The reference's passes need none of it: there it is in the policy's process."""
    from openrlhf_gagpo.backends.distributed.controller import StepTrainer

    backend = make(*flags.split())
    critic = Readers("critic") if "gae" in flags else None
    groups: Any = Readers("policy"), critic, Readers("reference")
    trainer = StepTrainer(backend.args, *groups, backend.settings.batches, 0)
    rows = segments(20, (3,))
    trainer.log_probs(rows)
    if critic is not None:
        trainer.values(rows)
    trainer._before(rows)
    assert [group.released for group in groups if group is not None] == [{released}] * (3 if critic else 2)


@pytest.mark.parametrize(("ranks", "plans"), [(2, 1), (4, 2)])
def test_policy_and_reference_read_every_row_once_from_batches_that_as_many_ranks_share(
    make: Make, monkeypatch: pytest.MonkeyPatch, ranks: int, plans: int
) -> None:
    """Those of two ranks of the policy do for as many of the reference, and others are made for more of them."""
    from openrlhf_gagpo.backends.distributed import batches
    from openrlhf_gagpo.backends.distributed.controller import StepTrainer

    collated: list[int] = []

    def collate(rows: Any, **named: Any) -> Any:
        collated.append(len(rows))
        return original(rows, **named)

    original = batches.collate
    monkeypatch.setattr(batches, "collate", collate)
    backend = make("--rollout.micro_batch_size", "2")
    policy, reference = Readers("policy", 2), Readers("reference", ranks)
    groups: Any = policy, None, reference
    trainer = StepTrainer(backend.args, *groups, backend.settings.batches, 0)
    rows = apart(segments(20, (7, 6)))
    assert len(rows) == 12
    read = trainer._before(rows)
    assert sum(collated) == 12 * plans
    for group, by_row in zip((policy, reference), read, strict=True):
        assert [value.tolist() for value in by_row] == [row.response_ids for row in rows]
        # All are there, so each is there once.
        shares = [sum(len(sequences) for sequences, _, _ in shard) for shard in group.shards]
        assert shares == [12 // group.ranks] * group.ranks


def test_a_second_model_of_a_process_keeps_its_ring(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from openrlhf_gagpo.backends.distributed import strategy

    rings: list[str] = []
    monkeypatch.setattr(strategy.DeepspeedStrategy, "setup_ring_attn", lambda *_: rings.append("made"))
    monkeypatch.setattr(strategy.DeepspeedStrategy, "ring_attn_group", property(lambda _: rings[0] if rings else None))
    monkeypatch.setattr(strategy.torch.distributed, "get_rank", lambda group: {"made": 1}[group])
    first, second = (strategy.StepStrategy(make("--ds.ring_attn_size", "2").args, []) for _ in range(2))
    first.setup_ring_attn(None)
    second.setup_ring_attn(None)
    assert rings == ["made"]
    assert second.ring_attn_rank == 1


@pytest.mark.parametrize(
    ("given", "extension"),
    [({"weight_transfer_config": {"backend": "ipc"}}, "WeightFileWorker"), ({}, "WorkerWrap")],
    ids=["vLLM's route", "OpenRLHF's route"],
)
def test_an_engine_on_a_gpu_has_the_extension_of_its_route(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], extension: str
) -> None:
    """With ours, vLLM's process ends with its actor."""
    import asyncio

    from openrlhf_gagpo.backends.distributed import engine

    made: list[dict[str, Any]] = []

    async def start(self: Any, **arguments: Any) -> None:
        made.append(arguments)

    monkeypatch.setattr(engine._OpenrlhfRollout, "__init__", start)
    monkeypatch.setattr(engine.compat, "cuda_available", lambda: True)
    actor = engine.AgentRolloutActorBase.__new__(engine.AgentRolloutActorBase)
    theirs = "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"
    asyncio.run(engine.AgentRolloutActorBase.__init__(actor, worker_extension_cls=theirs, **given))
    assert made[0]["worker_extension_cls"].endswith(f".{extension}")
    assert made[0].get("weight_transfer_config") == given.get("weight_transfer_config")
