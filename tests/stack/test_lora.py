"""LoRA in the policy's worker without the processes around it: OpenRLHF's model, DeepSpeed, our trainer, one rank."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from openrlhf_gagpo.training.collate import action_tensors, collate
from openrlhf_gagpo.training.objective import LossScale
from openrlhf_gagpo.training.values import trained_positions, value_tensors
from support.models import make_model
from support.real_stack import configuration
from support.transcripts import apart, segments

FLAGS = "--ds.lora.rank 4 --algo.kl.init_coef 0"


def start(kind: Any, model: Path, run: Path, *flags: str) -> Any:
    """A worker of a class with its model."""
    from openrlhf_gagpo.backends.distributed.backend import DistributedBackend
    from openrlhf_gagpo.config.settings import backend_settings

    config = configuration(model, run, *FLAGS.split(), *flags)
    # The backend is not started; it prepares the arguments for the workers.
    args = DistributedBackend(backend_settings(config), config.namespace()).args
    worker = kind(1, 0, "127.0.0.1", None)
    worker.load(args, [], str(model), 10)
    return worker


def update(worker: Any, seed: int) -> dict[str, float]:
    """One optimizer step of two micro-batches on made-up rows."""
    from openrlhf_gagpo.backends.distributed.batches import UpdateStep

    rows = apart(segments(20, (4, 5), seed))
    batches = []
    for part in (rows[:5], rows[5:]):
        tokens = collate(part, pad_id=0)
        old = [row.sampling_log_probs for row in part]
        batches.append((tokens, action_tensors(part, old, None, tokens.responses.mask)))
    scale = LossScale(len(rows), sum(len(row.response_ids) for row in rows))
    metrics: dict[str, float] = worker.train([UpdateStep(batches, scale)])
    return metrics


class Engine:
    """A rollout engine that keeps the names it is told of, and a group that keeps what is sent; both as on GPUs."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sent: list[Tensor] = []
        self.update_weight = SimpleNamespace(remote=lambda name, **_: self.names.append(name))
        self.reset_prefix_cache = SimpleNamespace(remote=lambda: None)

    def broadcast(self, tensor: Tensor, **_: object) -> None:
        self.sent.append(tensor.clone())


def test_a_worker_trains_saves_and_resumes_adapters(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openrlhf_gagpo.backends.distributed import compat

    compat.install()
    import ray

    from openrlhf_gagpo.backends.distributed.actors import PolicyActorBase

    model, run = make_model(tmp_path / "model", tied=True), tmp_path / "run"
    worker = start(PolicyActorBase, model, run)
    before = worker.parameters()
    adapters = {name for name in before if ".lora_" in name}
    count = sum(before[name].numel() for name in adapters)
    states = sum(part.numel() for part in worker.actor_optim.single_partition_of_fp32_groups)
    assert count <= states < 1.1 * count

    # In the first step the first factors have no gradient, because the second ones are zero.
    for seed in (0, 1):
        assert update(worker, seed)["policy/grad_norm"] > 0
    after = worker.parameters()
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == adapters
    worker.write_checkpoint(str(tmp_path / "kept"), "{}")
    worker.write_model(str(tmp_path / "kept_hf"))
    update(worker, 2)
    straight = worker.parameters()

    again = start(PolicyActorBase, model, run)
    assert again.read_checkpoint(str(tmp_path / "kept")) == "{}"
    update(again, 2)
    assert all(torch.equal(value, straight[name]) for name, value in again.parameters().items())

    # Beside the checkpoint a loadable model, without the second step.
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "kept_hf", dtype=torch.float32)
    worker.save_model()
    merged = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    ids = torch.arange(24).view(2, 12) % 20
    with torch.no_grad():
        wanted = worker.actor.model.module.eval()(input_ids=ids).logits
        torch.testing.assert_close(merged(ids).logits, wanted, atol=1e-5, rtol=0)
        assert float((saved(ids).logits - wanted).abs().max()) > 1e-3
    assert merged.lm_head.weight is merged.model.embed_tokens.weight

    # What is sent to engines on GPUs are the same weights, also by OpenRLHF's own route.
    from openrlhf_gagpo.backends.distributed.transfer import PolicySource

    source, plain = PolicySource(worker.trainer._plain_weights), dict(merged.named_parameters())
    assert [(meta.name, meta.shape) for meta in source.metadata()] == [
        (name, value.shape) for name, value in plain.items()
    ]
    for _ in range(2):
        assert all(torch.equal(value, plain[name]) for name, value in source)
    engine = Engine()
    monkeypatch.setattr(worker.trainer, "route", "openrlhf")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(ray, "get", lambda refs, **_: refs)
    monkeypatch.setattr(worker.trainer, "use_cuda_ipc", False)
    monkeypatch.setattr(worker.trainer, "vllm_engines", [engine])
    monkeypatch.setattr(worker.trainer, "_model_update_group", engine, raising=False)
    worker.broadcast_to_vllm()
    assert engine.names == list(plain)
    for name, value in zip(engine.names, engine.sent, strict=True):
        assert torch.equal(value, plain[name]), name


def test_a_critic_trains_its_head_through_an_adapter(alone: None, tmp_path: Path) -> None:
    from openrlhf_gagpo.backends.distributed import compat

    compat.install()
    from openrlhf_gagpo.backends.distributed.batches import CriticStep
    from openrlhf_gagpo.backends.distributed.critic import CriticActorBase

    model, run = make_model(tmp_path / "model", tied=True), tmp_path / "run"
    flags = "--algo.advantage.estimator gae --critic.adam.lr 1e-2 --critic.save_value_network"
    worker = start(CriticActorBase, model, run, *flags.split())
    before = worker.parameters()
    rows = apart(segments(20, (4, 5)))
    tokens = collate(rows, pad_id=0)
    targets = value_tensors(rows, trained_positions(rows, tokens, by_token=False), by_token=False)
    for _ in range(2):
        step = CriticStep([(tokens, targets)], LossScale(len(rows), len(rows)))
        assert worker.train([step])["critic/grad_norm"] > 0
    after = worker.parameters()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name in before if ".lora_" in name}
    assert any(".score.lora_" in name for name in moved)
    worker.save_model()
    merged = AutoModelForSequenceClassification.from_pretrained(run / "model_critic", num_labels=1, dtype=torch.float32)
    head = {name.rpartition("score.")[2]: value for name, value in after.items() if ".score." in name}
    change = 16 / 4 * head["lora_B.default.weight"] @ head["lora_A.default.weight"]
    assert float(change.abs().max()) > 1e-3
    torch.testing.assert_close(merged.score.weight, head["base_layer.weight"] + change, atol=1e-6, rtol=0)
