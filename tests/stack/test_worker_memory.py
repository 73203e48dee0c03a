"""The estimate of memory against the live tensors of a real policy worker, without processes around it."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from openrlhf_gagpo.config.memory import BUCKET, LIVE
from support.benchmarks import load
from support.local_checks import DEEP, LARGE, WIDE

PLACEMENT = "--backend distributed --actor.num_gpus_per_node 1 --vllm.num_engines 1 --train.colocate_all"


@pytest.fixture(scope="module")
def no_copies() -> Iterator[None]:
    """An optimizer that makes none in its step, as DeepSpeed's own, which is not compiled here."""
    # DeepSpeed subclasses it when it is imported.
    from openrlhf_gagpo.backends.distributed import actors  # noqa: F401

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", functools.partial(torch.optim.AdamW, fused=True))
        yield


@pytest.mark.usefixtures("alone", "no_copies")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("model", "extra"),
    [
        pytest.param(WIDE, "--ds.zero_stage 1", id="logits"),
        pytest.param(WIDE, "--ds.zero_stage 3 --train.logit_chunk 16", id="chunks"),
        pytest.param(DEEP, "--ds.zero_stage 2", id="activations"),
        pytest.param(DEEP, "--ds.zero_stage 2 --actor.gradient_checkpointing_enable", id="checkpointing"),
        pytest.param(LARGE, "--ds.zero_stage 2", id="weights"),
        pytest.param(LARGE, "--ds.zero_stage 3", id="whole weights"),
        pytest.param(LARGE, "--ds.zero_stage 2 --ds.lora.rank 8", id="adapters"),
    ],
)
def test_estimates_are_close_to_what_lives_in_an_update(
    tmp_path: Path, model: tuple[tuple[object, ...], tuple[int, ...]], dtype: str, extra: str
) -> None:
    from openrlhf_gagpo.backends.distributed.actors import PolicyActorBase
    from openrlhf_gagpo.backends.distributed.backend import DistributedBackend
    from openrlhf_gagpo.backends.distributed.batches import policy_steps
    from openrlhf_gagpo.config.resolve import resolve
    from openrlhf_gagpo.config.settings import backend_settings

    bench = load("gpu_local")
    sizes, work = bench.Sizes(*model[0]), bench.Work(*model[1])
    folder = bench.save_model(tmp_path / "model", sizes)
    flags = bench.flags(folder, tmp_path / "run", "auto", dtype, work)
    start = flags.index("--train.device")
    flags = [*flags[:start], *flags[start + 2 :], *PLACEMENT.split(), *extra.split()]
    config = resolve(flags)
    backend = DistributedBackend(backend_settings(config), config.namespace())
    rows = bench.make_rows(work.rows, work.prompt, work.answer, sizes.words)

    def steps(count: int) -> Any:
        given = rows[:count]
        plan = backend.settings.batches.plan_training(given, 1, 0)
        return policy_steps(given, plan, [row.sampling_log_probs for row in given], None, 0, 1)[0]

    worker = PolicyActorBase(1, 0, "127.0.0.1", None)
    before = live_bytes()
    worker.load(backend.args, [], str(folder), 10)
    # The optimizer has its states after the first step.
    worker.train(steps(work.micro))
    kept, given = live_bytes() - before, steps(work.rows)
    peak = kept + load("logits").peak_bytes(lambda: worker.train(given))
    assert sum(bench.estimated(flags, "update").values()) == pytest.approx(peak, rel=0.15)


def live_bytes() -> int:
    """Bytes of all tensors of this process."""
    gc.collect()
    storages = (each.untyped_storage() for each in gc.get_objects() if isinstance(each, torch.Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_the_estimate_knows_the_sizes_of_deepspeeds_buffers() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from openrlhf_gagpo.backends.distributed.strategy import DEFAULT_BUCKET

    defaults = DeepSpeedZeroConfig()
    assert defaults.reduce_bucket_size == DEFAULT_BUCKET == BUCKET
    assert defaults.max_live_parameters == LIVE
