"""The local backend's update against the loss written out row by row: what each flag and each row does to the gradient.

The optimizer is set so that one step shows the gradient: with betas 0 and learning rate and epsilon 1, AdamW moves a
parameter by -g / (|g| + 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings
from openrlhf_gagpo.errors import DivergenceError
from openrlhf_gagpo.training.rows import TrainingRow
from support import tiny_vault

Start = Callable[..., LocalBackend]
Parameters = dict[str, Tensor]


@pytest.fixture
def start(vault_model: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts backends that take one optimizer step an iteration, from the tiny model's parameters."""
    started: list[LocalBackend] = []

    def make(**changes: object) -> LocalBackend:
        settings: dict[str, object] = {
            "actor__adam__lr": 1.0,
            "actor__adam__eps": 1.0,
            "actor__max_norm": 0,
            "algo__kl__init_coef": 0,
            "train__batch_size": 64,
            "train__num_iterations": 8,
        }
        words = tiny_vault.arguments(vault_model, tmp_path / "run", **(settings | changes))[1:]
        config = resolve([*words, "--actor.adam.betas", "0", "0"])
        backend = LocalBackend(backend_settings(config), config.namespace())
        started.append(backend)
        backend.start()
        return backend

    yield make
    for backend in started:
        backend.close()


@pytest.fixture(scope="module")
def rows(vault_model: Path) -> list[TrainingRow]:
    """Random words, lengths and advantages; what the sampler thought of them is of no account here."""
    rng = np.random.default_rng(5)
    words = _load(vault_model).config.vocab_size

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(3, words, int(rng.integers(low, high))).tolist()

    made = []
    for index in range(13):
        response = tokens(1, 7)
        made.append(
            TrainingRow(
                prompt_ids=tokens(3, 40),
                response_ids=response,
                sampling_log_probs=[-1.0] * len(response),
                advantage=float(rng.normal()),
                trajectory=f"t{index}",
                step=0,
            )
        )
    return made


@dataclass(frozen=True)
class Written:
    """The written-out loss of one optimizer step and what is measured beside it."""

    gradient: Parameters
    entropy: float
    kl: float

    @property
    def norm(self) -> float:
        return math.sqrt(sum(float(value.square().sum()) for value in self.gradient.values()))


def _load(folder: Path, parameters: Parameters | None = None) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if parameters is not None:
        model.load_state_dict(parameters, strict=False)
        model.tie_weights()
    return model


def _log_probs(model: PreTrainedModel, row: TrainingRow, temperature: float) -> Tensor:
    """Log-probabilities of the whole vocabulary at each response token, (tokens, V)."""
    ids = torch.tensor([row.prompt_ids + row.response_ids])
    logits = model(ids).logits[0, len(row.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1)


def _written_out(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    rows: Sequence[TrainingRow],
    *,
    temperature: float = 1.0,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
) -> Written:
    """Row by row: minus the mean of ratio times advantage, KL (k3) and entropy as means over tokens."""
    objective = kl = entropy = torch.zeros(())
    for row in rows:
        chosen = torch.tensor(row.response_ids)[:, None]
        every = _log_probs(policy, row, temperature)
        log_probs = every.gather(-1, chosen)[:, 0]
        ratio = (log_probs - log_probs.detach()).mean().exp()
        objective = objective + ratio * row.advantage
        entropy = entropy - (every.exp() * every).sum()
        with torch.no_grad():
            start = _log_probs(reference, row, temperature).gather(-1, chosen)[:, 0]
        kl = kl + (torch.exp(start - log_probs) - (start - log_probs) - 1).sum()
    tokens = sum(len(row.response_ids) for row in rows)
    loss = -objective / len(rows) + (kl_coef * kl - entropy_coef * entropy) / tokens
    policy.zero_grad()
    loss.backward()
    gradient = {name: value.grad for name, value in policy.named_parameters() if value.grad is not None}
    return Written(gradient, entropy.item() / tokens, kl.item() / tokens)


def _gradient(before: Parameters, after: Parameters) -> Parameters:
    moved = {name: after[name] - value for name, value in before.items()}
    return {name: -step / (1 - step.abs()) for name, step in moved.items()}


def _assert_same(gradient: Parameters, expected: Parameters) -> None:
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradient[name], value, atol=2e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("temperature", "entropy_coef"), [(1.0, 0.0), (0.6, 0.0), (0.6, 0.5)], ids=["plain", "temperature", "entropy"]
)
def test_the_gradient_is_that_of_the_loss_at_the_sampling_temperature(
    start: Start, vault_model: Path, rows: list[TrainingRow], temperature: float, entropy_coef: float
) -> None:
    backend = start(rollout__temperature=temperature, actor__entropy_coef=entropy_coef)
    before = backend.parameters()
    metrics = backend.update(rows, seed=0)
    written = _written_out(
        _load(vault_model), _load(vault_model), rows, temperature=temperature, entropy_coef=entropy_coef
    )
    assert metrics["policy/entropy"] == pytest.approx(written.entropy, rel=1e-4)
    assert metrics["policy/grad_norm"] == pytest.approx(written.norm, rel=1e-4)
    _assert_same(_gradient(before, backend.parameters()), written.gradient)


def test_log_probs_of_the_sampler_are_compared_at_the_sampling_temperature(
    start: Start, vault_model: Path, rows: list[TrainingRow]
) -> None:
    model = _load(vault_model)
    sampled = []
    for row in rows:
        with torch.no_grad():
            values = _log_probs(model, row, 0.6).gather(-1, torch.tensor(row.response_ids)[:, None])[:, 0]
        sampled.append(replace(row, sampling_log_probs=values.tolist()))
    metrics = start(rollout__temperature=0.6).update(sampled, seed=0)
    assert metrics["policy/sampling_logprob_diff_max"] < 1e-4


def test_the_reference_is_the_model_the_run_started_from(
    start: Start, vault_model: Path, rows: list[TrainingRow]
) -> None:
    """In the first update policy and reference are equal, so it takes a second one to tell them apart."""
    backend = start(algo__kl__init_coef=0.5)
    # A small move: a token's KL is cut off at 10.
    first = backend.update([replace(row, advantage=row.advantage / 300) for row in rows], seed=0)
    assert first["policy/kl_ref"] == pytest.approx(0, abs=1e-6)
    before = backend.parameters()
    second = backend.update(rows, seed=1)
    written = _written_out(_load(vault_model, before), _load(vault_model), rows, kl_coef=0.5)
    assert second["policy/kl_ref"] == pytest.approx(written.kl, rel=1e-3)
    assert second["policy/kl_ref"] > 1e-3
    _assert_same(_gradient(before, backend.parameters()), written.gradient)


def test_a_gradient_above_max_norm_is_scaled_down_to_it(
    start: Start, vault_model: Path, rows: list[TrainingRow]
) -> None:
    written = _written_out(_load(vault_model), _load(vault_model), rows)
    limit = written.norm / 4
    backend = start(actor__max_norm=limit)
    before = backend.parameters()
    metrics = backend.update(rows, seed=0)
    # Logged is the norm before it is scaled.
    assert metrics["policy/grad_norm"] == pytest.approx(written.norm, rel=1e-4)
    scaled = {name: value / 4 for name, value in written.gradient.items()}
    _assert_same(_gradient(before, backend.parameters()), scaled)


def _with_advantages(row: TrainingRow, advantages: Sequence[float]) -> list[TrainingRow]:
    """The same prompt and response, met in several episodes."""
    return [replace(row, advantage=value, trajectory=f"repeat{index}") for index, value in enumerate(advantages)]


@pytest.mark.parametrize(
    "advantages", [(1.5, 1.5, 1.5), (2.0, -1.0, -0.25)], ids=["equal advantages", "different advantages"]
)
def test_a_repeated_row_counts_as_often_as_it_occurs_with_each_advantage(
    start: Start, vault_model: Path, rows: list[TrainingRow], advantages: tuple[float, ...]
) -> None:
    """The backend computes equal rows once, which may show in nothing but the time."""
    repeated = [*_with_advantages(rows[0], advantages), *rows[1:4]]
    settings = {"rollout__temperature": 0.6, "actor__entropy_coef": 0.5}
    backend = start(**settings)
    before = backend.parameters()
    metrics = backend.update(repeated, seed=0)
    written = _written_out(_load(vault_model), _load(vault_model), repeated, temperature=0.6, entropy_coef=0.5)
    assert metrics["policy/rows_trained"] == 6
    assert metrics["policy/entropy"] == pytest.approx(written.entropy, rel=1e-4)
    _assert_same(_gradient(before, backend.parameters()), written.gradient)


def test_tokens_weigh_what_the_sampler_correction_says(
    start: Start, vault_model: Path, rows: list[TrainingRow]
) -> None:
    """Written out: the ratio of training pass to sampler, clipped, times each token's advantage and gradient."""
    policy = _load(vault_model)
    rng = np.random.default_rng(2)
    loss, weights = torch.zeros(()), []
    sampled = []
    for row in rows:
        log_probs = _log_probs(policy, row, 1.0).gather(-1, torch.tensor(row.response_ids)[:, None])[:, 0]
        gaps = rng.normal(size=len(row.response_ids))
        sampled.append(replace(row, sampling_log_probs=(log_probs.detach().numpy() - gaps).tolist()))
        weight = np.clip(np.exp(gaps), 0.5, 5.0)
        loss = loss - row.advantage * (torch.tensor(weight, dtype=torch.float32) * log_probs).sum()
        weights += weight.tolist()
    (loss / len(weights)).backward()
    expected = {name: value.grad for name, value in policy.named_parameters() if value.grad is not None}
    backend = start(
        actor__policy_loss_type="ppo",
        algo__advantage__is_correction_level="token",
        algo__advantage__is_correction_mode="clip",
    )
    before = backend.parameters()
    metrics = backend.update(sampled, seed=0)
    _assert_same(_gradient(before, backend.parameters()), expected)
    assert metrics["policy/correction_weight_mean"] == pytest.approx(np.mean(weights), rel=1e-4)
    outside = np.mean([weight in (0.5, 5.0) for weight in weights])
    assert metrics["policy/correction_share"] == pytest.approx(outside)
    assert 0 < outside < 1


@pytest.mark.parametrize("steps", [1, 3])
def test_the_schedule_advances_once_an_iteration(start: Start, rows: list[TrainingRow], steps: int) -> None:
    """However many optimizer steps an iteration takes: its last one uses the learning rate of its first."""
    backend = start(
        actor__adam__lr=1e-3,
        actor__lr_scheduler="linear",
        train__num_iterations=4,
        train__batch_size=math.ceil(len(rows) / steps),
    )
    logged = []
    for seed in range(4):
        metrics = backend.update(rows, seed=seed)
        assert metrics["policy/optimizer_steps"] == steps
        logged.append(metrics["policy/lr"])
    assert logged == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def _state(backend: LocalBackend) -> list[dict[str, Tensor]]:
    return [dict(state) for state in backend.optimizer.state_dict()["state"].values()]


@pytest.mark.parametrize("advantage", [float("nan"), float("inf"), 3e38], ids=["nan", "inf", "overflow"])
def test_a_step_whose_gradient_is_not_finite_leaves_everything_as_it_was(
    start: Start, rows: list[TrainingRow], advantage: float
) -> None:
    faulty = [replace(rows[0], advantage=advantage), *rows[1:]]
    whole, hurt = start(), start()
    for backend in (whole, hurt):
        backend.update(rows, seed=0)
    before = hurt.parameters()
    metrics = hurt.update(faulty, seed=1)
    assert metrics["policy/skipped_steps"] == 1
    assert metrics["policy/optimizer_steps"] == metrics["policy/rows_trained"] == 0
    assert all(torch.equal(value, before[name]) for name, value in hurt.parameters().items())
    for backend in (whole, hurt):
        backend.update(rows, seed=2)
    reached = whole.parameters()
    assert all(torch.equal(value, reached[name]) for name, value in hurt.parameters().items())
    for one, other in zip(_state(whole), _state(hurt), strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_only_the_step_with_the_faulty_row_is_skipped(start: Start, rows: list[TrainingRow]) -> None:
    backend = start(train__batch_size=4, actor__adam__lr=1e-4)
    plan = backend.settings.batches.plan_training(rows, 1, 0)
    (lost,) = (len(step.rows) for step in plan if 0 in step.rows)
    metrics = backend.update([replace(rows[0], advantage=float("nan")), *rows[1:]], seed=0)
    assert len(plan) == 4
    assert (metrics["policy/skipped_steps"], metrics["policy/optimizer_steps"]) == (1, 3)
    assert metrics["policy/rows_trained"] == len(rows) - lost
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(value.isfinite().all() for value in backend.parameters().values())


def test_too_many_skipped_steps_in_a_row_end_the_run(start: Start, rows: list[TrainingRow]) -> None:
    faulty = [replace(row, advantage=float("nan")) for row in rows]
    backend = start(train__max_bad_steps=2)
    backend.update(faulty, seed=0)
    with pytest.raises(DivergenceError, match=r"policy .* 2 optimizer steps .*--actor\.adam\.lr.*max_bad_steps"):
        backend.update(faulty, seed=1)


@pytest.mark.parametrize("loss", ["gspo", "ppo"])
def test_a_step_without_response_tokens_has_loss_0(start: Start, rows: list[TrainingRow], loss: str) -> None:
    backend = start(algo__kl__init_coef=0.5, actor__entropy_coef=0.1, actor__policy_loss_type=loss)
    before = backend.parameters()
    metrics = backend.update([replace(row, response_ids=[], sampling_log_probs=[]) for row in rows], seed=0)
    assert metrics["policy/loss"] == metrics["policy/grad_norm"] == metrics["policy/tokens_trained"] == 0
    assert metrics["policy/optimizer_steps"] == 1
    assert all(torch.equal(value, before[name]) for name, value in backend.parameters().items())
