"""The local backend's update: what it returns, and that its result does not depend on how the batch is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from openrlhf_gagpo import metrics as glossary
from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings
from openrlhf_gagpo.rollout.records import read_episodes, write_episodes
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.training.backend import Restored
from openrlhf_gagpo.training.rows import TrainingRow
from openrlhf_gagpo.training.table import LOG_PROB, StepTable
from support import tiny_vault


def _backend(model: Path, tmp_path: Path, **changes: object) -> LocalBackend:
    # A parameter whose gradient is zero but for rounding (the bias of the keys, where a model has one) gets a step of
    # full size from Adam with its usual epsilon, in a direction that rounding decides. An epsilon above the rounding
    # noise leaves only what the rows decide.
    settings = {"actor__adam__eps": 1e-4, "train__batch_size": 16} | changes
    config = resolve(tiny_vault.arguments(model, tmp_path / "run", **settings)[1:])
    backend = LocalBackend(backend_settings(config), config.namespace())
    backend.start()
    return backend


def _rows(backend: LocalBackend, count: int) -> list[TrainingRow]:
    """Rows of random words and lengths."""
    rng = np.random.default_rng(count)
    words = len(backend.tokenizer)

    def tokens(low: int, high: int) -> list[int]:
        return rng.integers(3, words, int(rng.integers(low, high))).tolist()

    rows = []
    for index in range(count):
        response = tokens(1, 7)
        rows.append(
            TrainingRow(
                tokens(3, 40), response, [-1.0] * len(response), float(rng.normal()), f"t{index // 5}", index % 5
            )
        )
    return rows


def _updated(model: Path, tmp_path: Path, count: int, **changes: object) -> tuple[dict[str, Tensor], dict[str, float]]:
    backend = _backend(model, tmp_path, **changes)
    try:
        rows = _rows(backend, count)
        metrics = backend.update(rows, seed=3) | {"second": backend.update(rows, seed=4)["policy/loss"]}
        return backend.parameters(), metrics
    finally:
        backend.close()


@pytest.mark.parametrize("loss", ["gspo", "ppo"])
@pytest.mark.parametrize(("count", "micro"), [(12, 1), (37, 3), (100, 7)])
def test_parameters_do_not_depend_on_the_micro_batch_size(
    vault_model: Path, tmp_path: Path, count: int, micro: int, loss: str
) -> None:
    changes = {"actor__policy_loss_type": loss, "actor__entropy_coef": 0.01}
    expected, metrics = _updated(vault_model, tmp_path, count, train__micro_batch_size=16, **changes)
    before = _backend(vault_model, tmp_path)
    moved = [(expected[name] - value).abs().max() for name, value in before.parameters().items()]
    before.close()
    assert min(moved) > 1e-4
    parameters, other = _updated(
        vault_model, tmp_path, count, train__micro_batch_size=micro, rollout__micro_batch_size=micro, **changes
    )
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name], value, atol=1e-5, rtol=0, msg=name)
    for name, value in metrics.items():
        if not name.startswith("time/"):
            assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_token_limits_change_nothing_either(vault_model: Path, tmp_path: Path) -> None:
    expected, _ = _updated(vault_model, tmp_path, 37)
    parameters, _ = _updated(
        vault_model,
        tmp_path,
        37,
        train__dynamic_batch_enable=True,
        train__max_tokens_per_gpu=90,
        rollout__max_tokens_per_gpu=90,
    )
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name], value, atol=1e-5, rtol=0, msg=name)


def test_metrics_of_an_update(vault_model: Path, tmp_path: Path) -> None:
    _, metrics = _updated(vault_model, tmp_path, 37, train__max_epochs=2, actor__max_norm=0.5)
    metrics.pop("second")
    assert glossary.undocumented([metrics]) == set()
    assert metrics["policy/optimizer_steps"] == 6
    assert metrics["policy/rows_trained"] == 74
    assert metrics["policy/lr"] == 1e-3
    assert metrics["policy/grad_norm"] > 0


def test_the_first_step_is_on_policy(vault_model: Path, tmp_path: Path) -> None:
    _, metrics = _updated(vault_model, tmp_path, 12)
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["policy/kl_ref"] == pytest.approx(0, abs=1e-6)
    assert metrics["policy/clip_share"] == 0


def test_good_actions_become_more_likely_and_bad_ones_less(vault_model: Path, tmp_path: Path) -> None:
    backend = _backend(vault_model, tmp_path, algo__kl__init_coef=0.0, train__batch_size=64)
    try:
        rows = _rows(backend, 40)

        def log_probs() -> Tensor:
            """Mean over the tokens of each row."""
            values = backend._log_probs(backend.model, rows)
            return torch.stack([row.mean() for row in values])

        before = log_probs()
        for seed in range(5):
            backend.update(rows, seed)
        gain = log_probs() - before
        advantages = torch.tensor([row.advantage for row in rows])
        assert torch.corrcoef(torch.stack([gain, advantages]))[0, 1] > 0.5
    finally:
        backend.close()


@pytest.fixture
def player(vault_model: Path, tmp_path: Path) -> Iterator[LocalBackend]:
    """A backend that has sampled nothing yet, at another temperature than 1."""
    backend = _backend(vault_model, tmp_path, rollout__temperature=0.8, ckpt__path=str(tmp_path / "kept"))
    yield backend
    backend.close()


def _play(backend: LocalBackend, **changes: float) -> list[Episode]:
    requests = [EpisodeRequest(f"vault-train-{task}", "g", f"t{task}", 0, 7 + task) for task in range(4)]
    sampling = SamplingParams(6, 0.8, 1.0)
    return backend.rollout(requests, replace(sampling, **changes), lambda episode: None)


def _as_trained(episodes: list[Episode]) -> list[TrainingRow]:
    tokens = StepTable.from_episodes(episodes).tokens
    return [TrainingRow(**vars(row), advantage=float(place % 3 - 1)) for place, row in enumerate(tokens)]


def test_what_the_present_weights_sampled_is_not_computed_again(player: LocalBackend) -> None:
    rows = _as_trained(_play(player))
    sampled = player._sampled(rows)
    assert sampled is not None
    computed = player._log_probs(player.model, rows)
    for one, other in zip(sampled, computed, strict=True):
        torch.testing.assert_close(torch.tensor(one), other, atol=2e-6, rtol=1e-6)
    column = player.compute(rows, {LOG_PROB})[LOG_PROB]
    assert column.tolist() == [value for row in sampled for value in row]
    metrics = player.update(rows, seed=0)
    assert not [name for name in metrics if "sampling" in name]
    # By now the weights are others.
    assert player._sampled(rows) is None
    assert player.update(rows, seed=1)["policy/sampling_logprob_diff_max"] > 1e-4


def test_both_denominators_train_the_same_parameters(player: LocalBackend) -> None:
    rows = _as_trained(_play(player))
    player.save_checkpoint("global_step1", {"iteration": 1})
    player.update(rows, seed=0)
    expected = player.parameters()
    player.load_checkpoint()
    assert player._sampled(rows) is None
    player.update(rows, seed=0)
    for name, value in player.parameters().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("changes", [{"temperature": 1.0}, {"top_p": 0.9}])
def test_another_distribution_than_that_of_training_promises_nothing(
    player: LocalBackend, changes: dict[str, float]
) -> None:
    assert player._sampled(_as_trained(_play(player, **changes))) is None


def test_neither_do_half_precision_records_and_other_backends(
    player: LocalBackend, vault_model: Path, tmp_path: Path
) -> None:
    episodes = _play(player)
    write_episodes(tmp_path / "steps.jsonl.gz", episodes)
    assert player._sampled(_as_trained(read_episodes(tmp_path / "steps.jsonl.gz"))) is None
    assert player._sampled(_as_trained(episodes)) is not None
    for dtype in ("fp32", "bf16"):
        other = _backend(vault_model, tmp_path, rollout__temperature=0.8, ds__param_dtype=dtype)
        try:
            assert other._sampled(_as_trained(episodes)) is None
            assert (other._sampled(_as_trained(_play(other))) is None) == (dtype == "bf16")
        finally:
            other.close()


def test_no_rows_no_step(vault_model: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    backend = _backend(vault_model, tmp_path)
    try:
        before = backend.parameters()
        metrics = backend.update([], seed=1)
        assert metrics["policy/optimizer_steps"] == 0
        assert glossary.undocumented([metrics]) == set()
        after = backend.parameters()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not [warning for warning in recwarn if "scheduler" in str(warning.message)]
    finally:
        backend.close()


def test_pruning_checkpoints_leaves_other_folders_alone(vault_model: Path, tmp_path: Path) -> None:
    backend = _backend(vault_model, tmp_path, ckpt__path=str(tmp_path / "kept"), ckpt__max_num=2)
    (tmp_path / "kept" / "thesis").mkdir(parents=True)
    try:
        for iteration in range(1, 5):
            backend.save_checkpoint(f"global_step{iteration}", {"iteration": iteration})
        assert sorted(path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()) == [
            "global_step3",
            "global_step4",
            "thesis",
        ]
        assert backend.load_checkpoint() == Restored({"iteration": 4}, tmp_path / "kept" / "global_step4")
    finally:
        backend.close()
