"""Folders that the local backend writes are those that ``save_pretrained`` would write; its loop over planned steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from openrlhf_gagpo.backends import local_models
from openrlhf_gagpo.backends.local_models import run_updates, write_model
from openrlhf_gagpo.training.rows import MicroBatch, OptimizerStep
from openrlhf_gagpo.training.steps import StepLog
from support.models import make_model


@pytest.mark.parametrize("tied", [True, False])
def test_weights_have_the_names_that_other_programs_read(tmp_path: Path, tied: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "start", tied=tied), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    write_model(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert ("lm_head.weight" in ours) == (not tied)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in model.state_dict().items())


def test_sums_are_read_from_the_device_when_a_step_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of this device have no numbers, so that whatever reads one fails."""
    read: list[str] = []

    def read_sums(sums: dict[str, torch.Tensor]) -> dict[str, float]:
        read.append(sums["loss"].device.type)
        return {}

    monkeypatch.setattr(local_models, "read_sums", read_sums)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    plan = [OptimizerStep(((MicroBatch((0,)), MicroBatch((1,))),), 2.0, 2)] * 3
    sums = {"loss": torch.zeros((), device="meta")}
    log = StepLog("policy", "actor", 0)
    run_updates(model, optimizer, schedule, 1.0, plan, lambda *_: (model(torch.ones(1, 1)).sum(), sums), log)
    assert read == ["meta"] * 3
