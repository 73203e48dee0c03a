"""LoRA in the local backend: what is trained, what samples, what is written, and that a resumed run is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.cli.main import main
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings
from openrlhf_gagpo.rollout.types import Episode, SamplingParams
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.rows import TrainingRow
from openrlhf_gagpo.training.schedule import training_requests
from support import tiny_vault
from support.evaluations import evaluate

Make = Callable[..., LocalBackend]
LORA: dict[str, object] = {"ds__lora__rank": 4, "ds__lora__alpha": 8, "actor__adam__lr": 1e-2}
PPO: dict[str, object] = {"algo__advantage__estimator": "gae", "actor__policy_loss_type": "ppo"}


@pytest.fixture
def make(vault_model: Path, tmp_path: Path) -> Iterator[Make]:
    made: list[LocalBackend] = []

    def backend(model: Path = vault_model, **changes: object) -> LocalBackend:
        config = resolve(tiny_vault.arguments(model, tmp_path / "run", **(LORA | changes))[1:])
        made.append(LocalBackend(backend_settings(config), config.namespace()))
        made[-1].start()
        return made[-1]

    yield backend
    for each in made:
        each.close()


def play(backend: LocalBackend, iteration: int = 1) -> list[Episode]:
    requests = training_requests(["vault-train-0", "vault-train-1"], 4, iteration, seed=0)
    return backend.rollout(requests, SamplingParams(max_new_tokens=6), lambda episode: None)


def rows_of(episodes: list[Episode]) -> list[TrainingRow]:
    steps = [(episode, step) for episode in episodes for step in episode.steps]
    return [
        TrainingRow(
            step.prompt_ids, step.response_ids, step.sampling_log_probs, (-1.0) ** index, episode.trajectory, index,
            value=0.0, value_target=index % 3 / 3,
        )
        for index, (episode, step) in enumerate(steps)
    ]  # fmt: skip


def flat(values: list[Tensor]) -> Tensor:
    return torch.cat([value.detach() for value in values])


def sampled(rows: list[TrainingRow]) -> Tensor:
    return torch.tensor([value for row in rows for value in row.sampling_log_probs])


def test_only_adapters_are_trained_and_the_sampler_follows_them(make: Make, vault_model: Path, tmp_path: Path) -> None:
    backend = make(algo__kl__init_coef=0.05)
    before = backend.parameters()
    rows = rows_of(play(backend))
    optimized = [p for group in backend.optimizer.param_groups for p in group["params"]]
    adapters = {name: p for name, p in backend.model.named_parameters() if ".lora_" in name}
    assert {id(p) for p in optimized} == {id(p) for p in adapters.values()}
    torch.testing.assert_close(flat(backend._log_probs(backend.model, rows)), sampled(rows), atol=1e-5, rtol=0)

    metrics = backend.update(rows, seed=1)
    assert metrics["policy/grad_norm"] > 0
    after = backend.parameters()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name not in adapters)
    assert max(float((after[name] - before[name]).abs().max()) for name in adapters) > 1e-3
    # The same states with the same random draws: what was sampled before is no longer what the sampler says.
    trained = flat(backend._log_probs(backend.model, rows))
    assert float((trained - sampled(rows)).abs().max()) > 1e-2
    again = rows_of(play(backend))
    torch.testing.assert_close(flat(backend._log_probs(backend.model, again)), sampled(again), atol=1e-5, rtol=0)
    assert backend.reference is not None
    start = AutoModelForCausalLM.from_pretrained(vault_model, dtype=torch.float32).eval()
    expected = flat(backend._log_probs(start, again))
    assert torch.equal(flat(backend._log_probs(backend.reference, again)), expected)

    backend.export()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32).eval()
    torch.testing.assert_close(flat(backend._log_probs(merged, again)), sampled(again), atol=1e-5, rtol=0)
    assert (tmp_path / "run" / "model" / "adapter" / "adapter_config.json").is_file()


def test_half_precision_and_checkpointed_layers_train_adapters_too(make: Make) -> None:
    plain, packed = make(), make(ds__param_dtype="bf16", actor__gradient_checkpointing_enable=True)
    rows = rows_of(play(plain))
    norms = [backend.update(rows, seed=1)["policy/grad_norm"] for backend in (plain, packed)]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.parametrize("changes", [{}, PPO], ids=["policy", "with critic"])
def test_a_resumed_backend_reaches_the_same_parameters(make: Make, changes: dict[str, object]) -> None:
    """Also what adapters drop is the same."""
    changes = changes | {"ds__lora__dropout": 0.2}
    backend = make(**changes)
    rows = rows_of(play(backend))

    def go_on(backend: LocalBackend) -> list[dict[str, Tensor]]:
        for seed in (2, 3):
            backend.update(rows, seed)
        return [part.parameters() for part in (backend, backend.critic) if part is not None]

    backend.update(rows, seed=1)
    backend.save_checkpoint("global_step1", {"iteration": 1})
    straight = go_on(backend)
    again = make(**changes)
    if again.critic is not None:
        with torch.no_grad():
            # A head that was drawn otherwise, as on another device.
            again.critic.model.score.weight.normal_()
    restored = again.load_checkpoint()
    assert restored is not None
    assert restored.state == {"iteration": 1}
    for one, other in zip(straight, go_on(again), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_critic_learns_through_adapters_and_is_written_as_a_model(make: Make, tmp_path: Path) -> None:
    backend = make(**PPO, critic__adam__lr=3e-2, critic__save_value_network=True)
    assert backend.critic is not None
    rows = [replace(row, value=0.0) for row in rows_of(play(backend))]
    losses = [backend.update(rows, seed)["critic/loss"] for seed in range(6)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(".lora_" in name for name, p in backend.critic.model.named_parameters() if p.requires_grad)
    backend.export()
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model_critic", dtype=torch.float32)
    values = flat(backend.critic.values(rows))
    backend.critic.model = merged.eval()
    torch.testing.assert_close(flat(backend.critic.values(rows)), values, atol=1e-5, rtol=0)


def test_a_run_is_continued_and_its_model_evaluated(vault_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = LORA | {"eval__before_train": False, "eval__steps": -1, "report": False, "ckpt__load_enable": True}
    for iterations in (1, 2):
        assert main(tiny_vault.arguments(vault_model, run, **changes, train__num_iterations=iterations)) == 0
    assert [row["iteration"] for row in RunFolder.open(run).metrics()] == [1, 2]
    # Also a checkpoint is a plain model, as exact values and evaluations read it.
    for folder in (run / "model", run / "checkpoints" / "global_step2"):
        assert not any(".lora_" in name for name in load_file(folder / "model.safetensors"))
    result = evaluate(tmp_path / "out", "--config", str(run), "--policy.threads", "1")
    assert result["settings"]["policy"] == "in_process"
    assert (result["numbers"]["samples"], result["numbers"]["requests"] > 0) == (4, True)
