"""Tiny random models for the real stack, and folders that only look like a model."""

from __future__ import annotations

from pathlib import Path

__all__ = ["make_critic", "make_model", "model_folder", "safetensors"]


def safetensors(values: int = 6) -> bytes:
    """A weights file of one tensor."""
    header = f'{{"w":{{"dtype":"U8","shape":[{values}],"data_offsets":[0,{values}]}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + bytes(values)


def model_folder(folder: Path) -> Path:
    """A folder that passes the checks of a model without being one."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


def make_model(folder: Path, *, tied: bool, words: str = "", seed: int = 0) -> Path:
    """A tiny random Qwen3 with a word-level tokenizer over vault's words and ``words``."""
    import torch
    from transformers import set_seed

    from agent_envs import make
    from openrlhf_gagpo.warmstart.clone import build_model
    from openrlhf_gagpo.warmstart.settings import WarmstartSettings
    from openrlhf_gagpo.warmstart.tokenizer import build_tokenizer

    env = make("vault")
    texts = [words]
    for task in env.tasks("train")[:50]:
        start = env.reset(task, 0)
        texts += [start.observation, *start.admissible_actions, "action :"]
    tokenizer = build_tokenizer(texts)
    model = build_model(WarmstartSettings("vault", folder, seed=seed), tokenizer)
    with torch.no_grad():
        # Small logits: with a spread of one, vLLM's float32 is up to 1e-5 away from a float64 model at one token in ten
        # thousand, and tests allow 5e-6. What the tests look for moves log-probabilities by hundredths and more.
        model.model.embed_tokens.weight.mul_(0.25)
    if not tied:
        set_seed(seed)
        model.config.tie_word_embeddings = False
        head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
        torch.nn.init.normal_(head.weight, std=0.25 * model.config.hidden_size**-0.5)
        model.lm_head = head
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_critic(model: Path, folder: Path, *, seed: int = 0) -> Path:
    """A critic with the weights of a saved model and a value head that predicts more than noise; made once."""
    import torch
    from transformers import AutoModelForSequenceClassification, set_seed

    if not folder.exists():
        set_seed(seed)
        critic = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
        torch.nn.init.normal_(critic.score.weight, std=critic.config.hidden_size**-0.5)
        critic.save_pretrained(folder)
    return folder
