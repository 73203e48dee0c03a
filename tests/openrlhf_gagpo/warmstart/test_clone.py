"""The model, the masking of labels, the training, and the saved folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from openrlhf_gagpo.errors import WarmstartError
from openrlhf_gagpo.warmstart.clone import IGNORED, build_model, clone, collate, score
from openrlhf_gagpo.warmstart.demonstrations import Example
from openrlhf_gagpo.warmstart.pipeline import SETTINGS_FILE, warm_start
from openrlhf_gagpo.warmstart.settings import WarmstartSettings
from openrlhf_gagpo.warmstart.tokenizer import build_tokenizer
from support.corridor import Corridor


def _settings(out: Path, **changes: object) -> WarmstartSettings:
    values = {"hidden": 32, "heads": 1, "layers": 1, "ffn": 32, "batch_size": 16, "lr": 1e-2, "device": "cpu"}
    return WarmstartSettings(**({"env_name": "corridor", "out": out, "episodes": 60, "steps": 60} | values | changes))


def test_collate_pads_right_and_masks_prompts() -> None:
    batch = collate([[Example((5, 6, 7), (8, 1))], [Example((5,), (9, 1))]], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1], [5, 9, 1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED] * 3 + [8, 1], [IGNORED, 9, 1, IGNORED, IGNORED]]


def test_steps_of_a_sequence_share_a_row() -> None:
    batch = collate([[Example((5, 6), (8, 1)), Example((5, 6, 8, 1, 7), (9, 1))]], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 8, 1, 7, 9, 1]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 8, 1, IGNORED, 9, 1]]


def test_padding_does_not_change_a_row(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["a b c d e f"])
    model = build_model(_settings(tmp_path), tokenizer).eval()
    short, long = [Example((3, 4), (5, 1))], [Example((3, 4, 5, 6, 7), (8, 1))]
    with torch.no_grad():
        alone = model(input_ids=collate([short], 0)["input_ids"]).logits[0]
        beside = model(input_ids=collate([short, long], 0)["input_ids"]).logits[0, : len(alone)]
    torch.testing.assert_close(alone, beside)


def test_default_model_has_about_110k_parameters(tmp_path: Path) -> None:
    tokenizer = build_tokenizer([" ".join(f"w{i}" for i in range(40))])
    model = build_model(WarmstartSettings(env_name="vault", out=tmp_path), tokenizer)
    assert 105_000 < model.num_parameters() < 115_000
    assert model.config.tie_word_embeddings
    assert model.config.hidden_size // model.config.num_attention_heads == model.config.head_dim == 32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)


def test_cloning_is_seeded_and_learns(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["red blue left right :"])
    pairs = [("red :", "left"), ("blue :", "right")]
    rows = [
        [Example(tuple(tokenizer.encode(prompt)), (*tokenizer.encode(answer), tokenizer.eos_token_id))]
        for prompt, answer in pairs * 40
    ]
    settings = _settings(tmp_path)
    weights = []
    for _ in range(2):
        model = build_model(settings, tokenizer)
        before = score(model, rows, batch_size=16)
        after = clone(model, rows, settings)
        weights.append(model.model.embed_tokens.weight.detach().clone())
        assert after.loss < 0.1 < before.loss
        assert after.token_accuracy == 1.0
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_the_saved_folder_loads_and_plays(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    out = tmp_path / "model"
    settings = _settings(out, noise=0.1)
    lines: list[str] = []
    summary = warm_start(settings, Corridor(), lines.append)
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", SETTINGS_FILE} <= {
        path.name for path in out.iterdir()
    }
    record = json.loads((out / SETTINGS_FILE).read_text())
    assert record["settings"]["noise"] == 0.1
    assert record["summary"]["examples"] == summary.examples
    assert f"{summary.parameters} parameters" in lines

    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(out)
    generation = GenerationConfig.from_pretrained(out)
    assert (generation.eos_token_id, generation.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    prompt = tokenizer("at 2 now :", return_tensors="pt")
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=8)[0, prompt["input_ids"].shape[1] :]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "go right"


def test_nothing_is_saved_when_prompts_do_not_fit(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(WarmstartError, match="raise --max_positions"):
        warm_start(_settings(out, max_positions=66), Corridor(), lambda line: None)
    assert not out.exists()
