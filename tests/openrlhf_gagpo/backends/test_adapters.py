"""Adapters: merged weights compute what the layers with adapters do, and peft and transformers read the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from openrlhf_gagpo.backends.adapters import Adapters
from openrlhf_gagpo.backends.local_models import write_model
from openrlhf_gagpo.config.adapters import adapter_shape
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.shapes import ModelShape, find_shape
from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.training.settings import LoraSettings

ALL = LoraSettings(rank=3, alpha=6, dropout=0.0, layers=None)
FEW = LoraSettings(rank=2, alpha=5, dropout=0.3, layers=("q_proj", "layers.1.mlp.down_proj"))
IDS = torch.arange(24).view(2, 12) % 20


def started(folder: Path, kind: str, *, tied: bool) -> Any:
    """A tiny random model from its own folder; qwen2 has biases, qwen3 has norms of heads."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=tied,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def drawn(model: Any) -> None:
    """Give the adapters something to say; peft starts the second factor with zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.3)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(IDS).logits
    return result


@pytest.mark.parametrize("settings", [ALL, FEW], ids=["all layers", "named layers"])
@pytest.mark.parametrize(("kind", "tied"), [("qwen3", True), ("qwen2", False)])
def test_merged_and_separate_files_compute_what_the_model_does(
    tmp_path: Path, kind: str, tied: bool, settings: LoraSettings
) -> None:
    model = started(tmp_path / "start", kind, tied=tied)
    names = [name for name, _ in model.named_parameters()]
    before, plain = model.state_dict(), logits(model)
    before = {name: value.clone() for name, value in before.items()}
    adapters = Adapters.put_on(model, settings)
    model.eval()
    assert torch.equal(logits(model), plain)
    drawn(model)
    wanted = logits(model)
    assert float((wanted - plain).abs().max()) > 0.01

    assert [name for name, _ in adapters.parameters()] == names
    for name, weight in adapters.parameters():
        assert (weight.shape, weight.dtype) == (before[name].shape, torch.float32)
        assert torch.equal(weight.data, adapters.state()[name])
    write_model(model, tmp_path / "out", adapters)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), wanted, atol=1e-5, rtol=0)
    assert merged.state_dict().keys() == before.keys()
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=torch.float32)
    read = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    assert torch.equal(logits(read), wanted)
    # Reading the weights has left the model as it was.
    assert torch.equal(logits(model), wanted)


def test_a_weight_in_16_bits_is_the_rounded_sum(tmp_path: Path) -> None:
    model = started(tmp_path / "start", "qwen3", tied=True)
    exact = Adapters.put_on(model, ALL)
    drawn(model)
    layer = model.model.layers[0].mlp.up_proj
    layer.base_layer.to(torch.bfloat16)
    sizes = ALL.alpha / ALL.rank
    total = layer.base_layer.weight.float() + sizes * layer.lora_B.default.weight @ layer.lora_A.default.weight
    found = dict(exact.parameters())["model.layers.0.mlp.up_proj.weight"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.data, total.detach().to(torch.bfloat16), atol=0, rtol=2**-7)


@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize("layers", ["", "q_proj", "mlp.up_proj layers.1.self_attn.k_proj"])
def test_a_dry_run_counts_what_is_trained(tmp_path: Path, layers: str, critic: bool) -> None:
    started(tmp_path / "start", "qwen2", tied=False)
    names = (*layers.split(), "score") if layers else None
    kind = AutoModelForSequenceClassification if critic else AutoModelForCausalLM
    model = kind.from_pretrained(tmp_path / "start", **({"num_labels": 1} if critic else {}))
    Adapters.put_on(model, LoraSettings(5, 16, 0.0, names), value_head=critic)
    trained = [p for p in model.parameters() if p.requires_grad]
    config = resolve(["--ds.lora.rank", "5", *(["--ds.lora.target_modules", *names] if names else [])])
    shape = find_shape(str(tmp_path / "start"))
    assert isinstance(shape, ModelShape)
    found = adapter_shape(config, shape, value_head=critic)
    assert found is not None
    assert found.parameters == sum(p.numel() for p in trained)
    assert found.largest == max(p.numel() for p in trained)


def test_layers_that_are_not_there_and_adapters_of_other_sizes_are_named(tmp_path: Path) -> None:
    model = started(tmp_path / "start", "qwen3", tied=True)
    with pytest.raises(RunError, match=r"adapters: Target modules .*q_prog.* check --ds\.lora\.target_modules$"):
        Adapters.put_on(model, LoraSettings(2, 4, 0.0, ("q_prog",)))
    model = started(tmp_path / "start", "qwen3", tied=True)
    Adapters.put_on(model, ALL).save(tmp_path)
    other = Adapters.put_on(started(tmp_path / "start", "qwen3", tied=True), LoraSettings(2, 4, 0.0, None))
    with pytest.raises(RunError, match="adapters of other sizes"):
        other.load(tmp_path)
