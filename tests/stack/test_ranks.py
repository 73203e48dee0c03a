"""Several policy ranks and engines against the local oracle: the same rows give the same weights, in every engine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from openrlhf_gagpo import metrics as glossary
from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.config.settings import backend_settings, loop_settings
from openrlhf_gagpo.credit.gains import GainOptions
from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.rollout.types import AnswerTokens, Episode
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training import schedule
from openrlhf_gagpo.training.information_gain import Probes
from openrlhf_gagpo.training.loop import Trainer
from openrlhf_gagpo.training.table import LOG_PROB
from support.models import make_model
from support.real_stack import Silent, configuration, gap, play, policy_parameters, rows_of
from support.transcripts import segments

# What the local backend has too, then the placement.
PLANS = {
    "colocated": (
        "--train.max_epochs 2 --actor.entropy_coef 0.01 --ds.packing_samples",
        "--actor.num_gpus_per_node 2 --vllm.num_engines 2 --ds.zero_stage 2",
    ),
    # The reference has another number of ranks than the policy.
    "apart": (
        "--rollout.temperature 0.7 --actor.gradient_checkpointing_enable --actor.policy_loss_type ppo "
        "--algo.advantage.is_correction_level token --algo.advantage.is_correction_mode clip "
        "--algo.advantage.is_correction_threshold 1.05",
        "--actor.num_gpus_per_node 2 --ref.num_gpus_per_node 1 --vllm.num_engines 1 --ds.zero_stage 1 "
        "--train.no_colocate_all --train.overlap one_step",
    ),
    # Several micro-batches of the many tokens of a prompt with its history.
    "adapters": (
        "--ds.lora.rank 4 --ds.lora.alpha 8 --algo.kl.init_coef 0 --ds.packing_samples --train.dynamic_batch_enable "
        "--train.max_tokens_per_gpu 2000 --rollout.max_tokens_per_gpu 2000",
        "--actor.num_gpus_per_node 2 --vllm.num_engines 1 --ds.zero_stage 2 --train.no_colocate_all",
    ),
}


@pytest.fixture(scope="module")
def pair(
    request: pytest.FixtureRequest, ray_runtime: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, LocalBackend]]:
    """A distributed backend of several ranks, and a local one from the same model."""
    from openrlhf_gagpo.backends.distributed.backend import DistributedBackend

    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(folder / "model", tied=True)
    shared, placement = (flags.split() for flags in PLANS[request.param])
    config = configuration(model, folder / "run", *shared, *placement)
    single = configuration(model, folder / "local", "--backend", "local", *shared)
    many = DistributedBackend(backend_settings(config), config.namespace())
    local = LocalBackend(backend_settings(single), single.namespace())
    try:
        local.start()
        many.start()
        # Adapters are drawn at random; everything else is equal.
        local.model.load_state_dict(policy_parameters(many), strict=False)
        yield many, local
    finally:
        local.close()
        many.close()


@pytest.mark.parametrize("pair", ["colocated", "apart"], indirect=True)
def test_updates_of_any_size_equal_those_of_one_process_and_reach_every_engine(pair: tuple[Any, LocalBackend]) -> None:
    many, local = pair
    episodes = play(many, iteration=1, tasks=8)
    assert gap(many, episodes) <= 5e-6
    compare_information_gain(many, local, episodes[:6])
    cases = [rows_of(episodes, count, seed=count) for count in (37, 12, 1)]
    cases.append(segments(len(local.tokenizer), (9, 4, 6, 1, 12, 3, 8)))
    cases.append([])
    for seed, rows in enumerate(cases):
        if rows:
            computed = [backend.compute(rows, {LOG_PROB})[LOG_PROB] for backend in (many, local)]
            np.testing.assert_allclose(*computed, atol=1e-5, rtol=1e-5)
        there, here = (backend.update(rows, seed=seed) for backend in (many, local))
        assert there["policy/rows_trained"] == here["policy/rows_trained"]
        assert there["policy/optimizer_steps"] == here["policy/optimizer_steps"]
        if rows:
            assert there["policy/grad_norm"] == pytest.approx(here["policy/grad_norm"], rel=1e-4)
        reached = policy_parameters(many)
        for name, value in local.parameters().items():
            assert float((value - reached[name]).abs().max()) <= 1e-5, name
    many.sync()
    after = play(many, iteration=2, tasks=8)
    assert len(after) == 32
    assert gap(many, after) <= 5e-6


@pytest.mark.parametrize("pair", ["apart"], indirect=True)
def test_a_rollout_beside_the_update_has_the_weights_of_before_it(
    pair: tuple[Any, LocalBackend], tmp_path: Path
) -> None:
    many, _ = pair
    config = configuration(
        many.args.actor.model_name_or_path, tmp_path, *" ".join(PLANS["apart"]).split(), "--train.num_iterations", "4",
        "--env.eval_split", "valid", "--eval.steps", "3", "--eval.no_before_train",
        "--algo.advantage.no_drop_reward_free_groups", "--algo.advantage.invalid_penalty", "0.1",
    )  # fmt: skip
    settings = loop_settings(config, [f"vault-train-{index}" for index in range(8)], ["vault-valid-0"])
    run = RunFolder.create(tmp_path, {}, "")
    many.sync()
    Trainer(settings, many, run, Silent()).fit()
    rows = run.metrics()
    assert glossary.undocumented(rows) == set()
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1, 0]
    # What the policy learnt meanwhile lies between its sampler's log-probabilities and its own.
    gaps = [row["policy/sampling_logprob_diff_max"] for row in rows]
    assert [gap > 1e-3 for gap in gaps] == [False, True, True, False], gaps
    assert [row["policy/correction_share"] > 0 for row in rows] == [False, True, True, False]

    # A run that stops while one is played ends it too, without starting the engine again. The last test of this pair.
    begun, fleet = Event(), many.fleet
    requests = schedule.training_requests([f"vault-train-{index}" for index in range(200)], 4, 9, seed=0)
    with ThreadPoolExecutor(max_workers=1) as thread:
        playing = thread.submit(many.rollout, requests, settings.sampling, lambda episode: begun.set())
        assert begun.wait(60)
        many.close()
        with pytest.raises(RunError, match="the engines were stopped during a rollout"):
            playing.result(timeout=10)
    assert fleet.restarts == 0


def compare_information_gain(many: Any, local: LocalBackend, episodes: list[Episode]) -> None:
    """Of made-up answers, one or two to a task, that are read after every prompt."""
    asked = [
        replace(episode, answers=[AnswerTokens([5, 6, 7, 4 + number], 1) for number in range(1 + index % 2)])
        for index, episode in enumerate(episodes)
    ]
    probes = Probes.of(asked)
    computed = [backend.compute(probes.rows, {LOG_PROB})[LOG_PROB] for backend in (many, local)]
    np.testing.assert_allclose(*computed, atol=1e-5)
    there, here = (probes.gains(log_probs, GainOptions()) for log_probs in computed)
    assert np.isfinite(here).sum() > len(episodes)
    assert np.abs(here[np.isfinite(here)]).max() > 1e-3
    np.testing.assert_allclose(there, here, atol=1e-4)


@pytest.mark.parametrize("pair", ["adapters"], indirect=True)
def test_adapters_are_trained_alike_and_reach_the_engine_and_the_files_merged(pair: tuple[Any, LocalBackend]) -> None:
    many, local = pair
    episodes = play(many, iteration=1)
    assert gap(many, episodes) <= 5e-6
    rows = rows_of(episodes, 37)
    for seed in (0, 1):
        norms = [backend.update(rows, seed=seed)["policy/grad_norm"] for backend in pair]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    reached = policy_parameters(many)
    for name, value in local.parameters().items():
        assert float((value - reached[name]).abs().max()) <= 1e-5, name
    # The policy is another one now, which the engine has to learn of.
    assert gap(many, episodes) > 1e-3
    many.sync()
    assert gap(many, play(many, iteration=1)) <= 5e-6

    many.export()
    local.export()
    folders = [backend.settings.checkpoints.output_dir for backend in pair]
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        there, here = (load_file(folder / file) for folder in folders)
        assert there.keys() == here.keys()
        for name, value in here.items():
            assert float((value - there[name]).abs().max()) <= 1e-5, name
    for name in ("config.json", "tokenizer.json", "adapter/adapter_config.json"):
        assert (folders[0] / name).is_file()
