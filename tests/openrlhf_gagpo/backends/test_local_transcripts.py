"""One sequence per transcript gives the numbers of one row per action with the same context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from openrlhf_gagpo import metrics as glossary
from openrlhf_gagpo.backends import response_pass
from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings, loop_settings
from openrlhf_gagpo.rollout.records import read_episodes
from openrlhf_gagpo.rollout.types import EpisodeRequest, SamplingParams
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.loop import Trainer
from openrlhf_gagpo.training.rows import TrainingRow
from openrlhf_gagpo.training.table import LOG_PROB, StepTable
from openrlhf_gagpo.training.token_scores import Reading
from support import tiny_vault
from support.models import make_critic
from support.transcripts import PlannedBySequence, apart, merging_tokenizer, segments

Make = Callable[..., LocalBackend]
SIZES = (5, 3, 4, 1, 6, 2)


@pytest.fixture
def make(vault_model: Path, tmp_path: Path) -> Iterator[Make]:
    made: list[LocalBackend] = []

    def backend(*, planned: list[TrainingRow] | None = None, **changes: object) -> LocalBackend:
        flags = {
            "algo__advantage__estimator": "gae",
            "actor__policy_loss_type": "ppo",
            "actor__entropy_coef": 0.02,
            "algo__kl__init_coef": 0.05,
            "critic__model_name_or_path": make_critic(vault_model, tmp_path / "critic"),
            # See test_local.py.
            "actor__adam__eps": 1e-4,
            "critic__adam__eps": 1e-4,
            "critic__adam__lr": 1e-3,
            "train__batch_size": 7,
            "train__micro_batch_size": 2,
            "rollout__micro_batch_size": 3,
            "data__max_len": 128,
        } | changes
        config = resolve(tiny_vault.arguments(vault_model, tmp_path / "run", **flags)[1:])
        settings = backend_settings(config)
        if planned is not None:
            batches = PlannedBySequence(*(getattr(settings.batches, item.name) for item in fields(settings.batches)))
            object.__setattr__(batches, "rows", planned)
            settings = replace(settings, batches=batches)
        made.append(LocalBackend(settings, config.namespace()))
        made[-1].start()
        return made[-1]

    yield backend
    for each in made:
        each.close()


def test_log_probabilities_and_values_are_those_of_one_row_per_action(make: Make) -> None:
    backend = make()
    rows = segments(len(backend.tokenizer), SIZES)
    columns = {LOG_PROB, "value", "token_value"}
    whole, single = backend.compute(rows, columns), backend.compute(apart(rows), columns)
    for name in columns:
        np.testing.assert_allclose(whole[name], single[name], atol=1e-5)
        assert np.ptp(whole[name]) > 0.01


def test_a_transcript_goes_through_the_model_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make(train__micro_batch_size=100, rollout__micro_batch_size=100)
    read: list[int] = []
    plain = response_pass.plain_pass

    def counting(model: object, rows: list[TrainingRow], pad_id: int, reading: Reading) -> object:
        read.append(response_pass.collate(rows, pad_id=pad_id).attention_mask.sum().item())
        return plain(model, rows, pad_id, reading)

    monkeypatch.setattr(response_pass, "plain_pass", counting)
    rows = segments(len(backend.tokenizer), SIZES)
    backend.compute(rows, {LOG_PROB})
    longest = {row.sequence: 0 for row in rows}
    for row in rows:
        longest[row.sequence] = max(longest[row.sequence], row.length)
    assert read == [sum(longest.values())]


@pytest.mark.parametrize(("loss", "by_token"), [("gspo", False), ("ppo", True)])
def test_updates_reach_the_parameters_of_one_row_per_action(make: Make, loss: str, by_token: bool) -> None:
    flags: dict[str, object] = {"actor__policy_loss_type": loss}
    if by_token:
        flags["algo__advantage__gae_level"] = "token"
        flags["train__max_epochs"] = 2
    first = make(**flags)
    rows = segments(len(first.tokenizer), SIZES)
    if by_token:
        rng = np.random.default_rng(1)
        rows = [
            replace(
                row,
                token_value_targets=rng.normal(size=len(row.response_ids)),
                token_advantages=rng.normal(size=len(row.response_ids)),
            )
            for row in rows
        ]
    second = make(planned=rows, **flags)
    for seed in (1, 2):
        whole, single = first.update(rows, seed), second.update(apart(rows), seed)
        assert whole["policy/optimizer_steps"] >= 3
        assert whole.keys() == single.keys()
        for name in whole:
            # Whether a value that moved by less than the clip counts as clipped is decided by rounding.
            if not name.startswith("time/") and name != "critic/clip_share":
                assert whole[name] == pytest.approx(single[name], rel=1e-4, abs=1e-6), name
        for name, value in first.parameters().items():
            torch.testing.assert_close(value, second.parameters()[name], atol=1e-5, rtol=0, msg=name)
        assert first.critic is not None
        assert second.critic is not None
        for name, value in first.critic.parameters().items():
            torch.testing.assert_close(value, second.critic.parameters()[name], atol=1e-5, rtol=0, msg=name)


class Silent:
    """An observer that looks away."""

    def phase(self, *_: object) -> None: ...

    episode = iteration = evaluation = phase


def test_a_run_of_two_iterations(make: Make, vault_model: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {
        "rollout__context": "transcript",
        "rollout__transcript_overflow": "drop",
        "data__max_len": 110,
    }
    backend = make(**changes)
    changes |= {"algo__advantage__estimator": "gae", "eval__before_train": False}
    config = resolve(tiny_vault.arguments(vault_model, tmp_path / "run", **changes)[1:])
    run = RunFolder.create(tmp_path / "run", {}, "")
    tasks = [f"vault-train-{index}" for index in range(4)]
    Trainer(loop_settings(config, tasks, ["vault-valid-0"]), backend, run, Silent()).fit()
    assert glossary.undocumented([*run.metrics(), *run.evals()]) == set()
    for row in run.metrics():
        assert row["policy/rows_trained"] == row["rollout/steps"]
        assert row["rollout/episodes"] < row["rollout/sequences"] < row["rollout/steps"]
    # The sampler's numbers are those of a pass over the whole transcripts, with the weights that played.
    requests = [EpisodeRequest(task, task, f"t{index}", 0, index) for index, task in enumerate(tasks)]
    table = StepTable.from_episodes(backend.rollout(requests, SamplingParams(6), lambda episode: None))
    for row, value in zip(table.tokens, backend._log_probs(backend.model, table.tokens), strict=True):
        torch.testing.assert_close(value, torch.tensor(row.sampling_log_probs), atol=1e-5, rtol=0)
    recorded = read_episodes(run.rollout_path(2))
    assert [step.sequence for step in recorded[0].steps] == sorted(step.sequence for step in recorded[0].steps)


def test_episodes_in_a_chat_template(tmp_path: Path) -> None:
    tokenizer = merging_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=16, max_position_embeddings=8192, **shape
        )
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "model")
    flags: dict[str, object] = {"rollout__context": "transcript", "data__max_len": 4096}
    flags |= {"rollout__think": True, "rollout__action_tags": True, "rollout__chat_template": "auto"}
    config = resolve(tiny_vault.arguments(tmp_path / "model", tmp_path / "run", **flags)[1:])
    backend = LocalBackend(backend_settings(config), config.namespace())
    try:
        backend.start()
        requests = [EpisodeRequest("vault-train-0", "g", f"t{index}", 0, index) for index in range(2)]
        episodes = backend.rollout(requests, SamplingParams(6), lambda episode: None)
        assert [episode.error for episode in episodes] == ["", ""]
        table = StepTable.from_episodes(episodes)
        assert {row.sequence for row in table.tokens} == {0, 1}
        values = backend._log_probs(backend.model, table.tokens)
    finally:
        backend.close()
    for row, value in zip(table.tokens, values, strict=True):
        torch.testing.assert_close(value, torch.tensor(row.sampling_log_probs), atol=1e-5, rtol=0)
    for episode in episodes:
        text = tokenizer.decode(episode.steps[-1].prompt_ids)
        assert text.count("<|im_start|>assistant\n<think>\n") == len(episode.steps)
        # The first turn's instructions come once.
        assert text.count("You walk through a square grid") == 1
        assert text.count("<|im_end|>\n<|im_start|>user\nSituation: ") == len(episode.steps) - 1
