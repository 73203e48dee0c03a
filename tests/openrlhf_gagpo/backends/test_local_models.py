"""Folders that the local backend writes are those that ``save_pretrained`` would write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from openrlhf_gagpo.backends.local_models import write_model
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
