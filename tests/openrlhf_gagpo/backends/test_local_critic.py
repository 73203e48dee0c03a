"""The local critic: its values, its update, and that a checkpoint holds all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings
from openrlhf_gagpo.errors import DivergenceError
from openrlhf_gagpo.training.backend import Restored
from openrlhf_gagpo.training.rows import TrainingRow
from support import tiny_vault

Make = Callable[..., LocalBackend]


@pytest.fixture
def make(vault_model: Path, tmp_path: Path) -> Iterator[Make]:
    made: list[LocalBackend] = []

    def backend(model: Path = vault_model, run: str = "run", **changes: object) -> LocalBackend:
        flags = {
            "algo__advantage__estimator": "gae",
            "algo__kl__init_coef": 0.0,
            "actor__policy_loss_type": "ppo",
            "critic__adam__lr": 1e-3,
        }
        config = resolve(tiny_vault.arguments(model, tmp_path / run, **(flags | changes))[1:])
        made.append(LocalBackend(backend_settings(config), config.namespace()))
        made[-1].start()
        return made[-1]

    yield backend
    for each in made:
        each.close()


def rows(backend: LocalBackend, count: int, *, by_token: bool = False) -> list[TrainingRow]:
    """Random rows, some of them twice, with the critic's present values and random targets."""
    rng = np.random.default_rng(count)
    words = len(backend.tokenizer)
    plain = []
    for index in range(count):
        if index % 5 == 4:
            plain.append(replace(plain[-1], step=index))
            continue
        prompt = rng.integers(3, words, int(rng.integers(3, 30))).tolist()
        response = rng.integers(3, words, int(rng.integers(1, 6))).tolist()
        plain.append(TrainingRow(prompt, response, [-1.0] * len(response), float(rng.normal()), "t", index))
    columns = backend.compute(plain, {"value"})
    ends = np.cumsum([len(row.response_ids) for row in plain])
    values = np.split(columns["token_value"], ends[:-1])
    return [
        replace(
            row,
            value=float(columns["value"][index]),
            token_values=values[index],
            value_target=None if by_token else float(rng.normal()),
            token_value_targets=rng.normal(size=len(row.response_ids)) if by_token else None,
        )
        for index, row in enumerate(plain)
    ]


def test_values_are_those_of_one_full_pass_per_row(make: Make) -> None:
    backend = make(rollout__micro_batch_size=3)
    assert backend.critic is not None
    # Larger than at the start, so that a wrong position shows.
    with torch.no_grad():
        backend.critic.model.score.weight.mul_(30)
    given = rows(backend, 20)
    columns = backend.compute(given, {"value", "token_value"})
    head = backend.critic.model.score.weight[0]
    values = []
    for row in given:
        with torch.no_grad():
            hidden = backend.critic.model.base_model(
                torch.tensor([row.prompt_ids + row.response_ids])
            ).last_hidden_state
            values.append((hidden[0] @ head)[len(row.prompt_ids) - 1 : -1])
    np.testing.assert_allclose(columns["value"], [float(value[0]) for value in values], atol=1e-5)
    np.testing.assert_allclose(columns["token_value"], torch.cat(values), atol=1e-5)
    assert np.ptp(columns["value"]) > 0.1


@pytest.mark.parametrize("by_token", [False, True])
def test_updates_do_not_depend_on_the_micro_batch_size_and_reach_the_targets(make: Make, by_token: bool) -> None:
    reached = []
    start = make(critic__save_value_network=True)
    start.export()
    critic = str(start.settings.checkpoints.critic_dir)
    for micro in (5, 32):
        backend = make(
            run=f"run{micro}",
            critic__model_name_or_path=critic,
            critic__adam__eps=1e-4,
            critic__value_clip=100,
            train__micro_batch_size=micro,
        )
        given = rows(backend, 37, by_token=by_token)
        losses = [backend.update(given, seed=seed, policy=False)["critic/loss"] for seed in range(12)]
        assert losses[-1] < 0.7 * losses[0]
        assert backend.critic is not None
        reached.append(backend.critic.parameters())
    for name, value in reached[0].items():
        torch.testing.assert_close(value, reached[1][name], atol=1e-5, rtol=0, msg=name)


def test_a_warm_up_iteration_leaves_the_policy_alone(make: Make) -> None:
    backend = make()
    given = rows(backend, 12)
    assert backend.critic is not None
    policy, critic = backend.parameters(), backend.critic.parameters()
    metrics = backend.update(given, seed=0, policy=False)
    assert metrics["policy/optimizer_steps"] == 0
    assert all(torch.equal(value, policy[name]) for name, value in backend.parameters().items())
    assert any(not torch.equal(value, critic[name]) for name, value in backend.critic.parameters().items())
    backend.update(given, seed=0)
    assert any(not torch.equal(value, policy[name]) for name, value in backend.parameters().items())


def test_a_checkpoint_continues_the_critic_and_its_optimizer(make: Make) -> None:
    backend = make()
    given = rows(backend, 24)
    backend.update(given, seed=0)
    backend.save_checkpoint("global_step1", {"iteration": 1})
    backend.update(given, seed=1)
    other = make()
    assert other.load_checkpoint() == Restored({"iteration": 1}, other.settings.checkpoints.path / "global_step1")
    other.update(given, seed=1)
    assert backend.critic is not None
    assert other.critic is not None
    for name, value in backend.critic.parameters().items():
        assert torch.equal(value, other.critic.parameters()[name]), name


def test_a_saved_critic_is_a_model_folder_that_a_run_can_start_from(make: Make) -> None:
    backend = make(critic__save_value_network=True)
    backend.update(rows(backend, 12), seed=0)
    backend.export()
    folder = backend.settings.checkpoints.critic_dir
    assert folder.name == "model_critic"
    AutoModel.from_pretrained(folder)
    other = make(run="other", critic__model_name_or_path=str(folder))
    assert backend.critic is not None
    assert other.critic is not None
    for name, value in backend.critic.parameters().items():
        assert torch.equal(value, other.critic.parameters()[name]), name


def test_without_an_estimator_that_needs_it_there_is_no_critic(vault_model: Path, tmp_path: Path) -> None:
    config = resolve(tiny_vault.arguments(vault_model, tmp_path / "run")[1:])
    assert backend_settings(config).critic is None


def test_a_critic_skips_its_own_steps(make: Make) -> None:
    backend = make(critic__adam__lr=1e-2, train__max_bad_steps=2)
    assert backend.critic is not None
    given = rows(backend, 12)
    faulty = [replace(given[0], value_target=float("inf")), *given[1:]]
    backend.update(given, seed=0)
    before = backend.critic.parameters()
    metrics = backend.update(faulty, seed=1)
    assert (metrics["critic/skipped_steps"], metrics["policy/skipped_steps"]) == (1, 0)
    assert metrics["policy/optimizer_steps"] == 1
    assert all(torch.equal(value, before[name]) for name, value in backend.critic.parameters().items())
    with pytest.raises(DivergenceError, match=r"critic .* 2 optimizer steps in a row.*--critic\.adam\.lr"):
        backend.update(faulty, seed=2)


def test_a_critic_of_tokens_without_any_has_loss_0(make: Make) -> None:
    backend = make()
    assert backend.critic is not None
    given = [
        replace(row, response_ids=[], sampling_log_probs=[], token_values=[], token_value_targets=np.zeros(0))
        for row in rows(backend, 4, by_token=True)
    ]
    before = backend.critic.parameters()
    assert backend.update(given, seed=0)["critic/loss"] == 0
    assert all(torch.equal(value, before[name]) for name, value in backend.critic.parameters().items())
