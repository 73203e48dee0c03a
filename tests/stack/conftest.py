"""One Ray runtime for all tests of the real stack, and tiny models to run on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from openrlhf_gagpo import hygiene

hygiene.apply()
os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session")
def ray_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A local Ray head with logical GPUs and a job server; drivers join it through ``RAY_ADDRESS``."""
    import ray

    context = ray.init(num_cpus=8, num_gpus=4, include_dashboard=True, dashboard_port=0, log_to_driver=False)
    yield {"address": ray.get_runtime_context().gcs_address, "dashboard": f"http://{context.dashboard_url}"}
    ray.shutdown()


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
