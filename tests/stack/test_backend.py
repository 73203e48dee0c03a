"""The distributed backend against its oracle, and the failures of the stack that would otherwise be silent.

One backend (policy, reference, vLLM engine) per kind of model serves all tests; starting one takes most of a minute.
The one of the untied model has a critic too. Tests to which it makes no difference run on that one. The environments of
the other are in hosts on the nodes of the cluster, of which there is one.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from openrlhf_gagpo import metrics as glossary
from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.config.settings import backend_settings, loop_settings
from openrlhf_gagpo.credit.gains import GainOptions
from openrlhf_gagpo.errors import DivergenceError, RunError
from openrlhf_gagpo.rollout.types import AnswerTokens, Episode, SamplingParams
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training import schedule
from openrlhf_gagpo.training.information_gain import Probes
from openrlhf_gagpo.training.loop import Trainer
from openrlhf_gagpo.training.table import LOG_PROB
from support import faulty_engines
from support.models import make_model
from support.real_stack import (
    Silent,
    configuration,
    critic_parameters,
    gap,
    play,
    policy_parameters,
    rows_of,
    with_critic,
    with_repeats,
)
from support.transcripts import apart, segments


@pytest.fixture(scope="module", params=["tied", "untied"])
def backend(
    request: pytest.FixtureRequest, ray_runtime: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    from openrlhf_gagpo.backends.distributed.backend import DistributedBackend

    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(folder / "model", tied=request.param == "tied")
    extra = with_critic(model) if request.param == "untied" else ["--env.placement", "ray", "--ds.zero_stage", "3"]
    config = configuration(model, folder / "run", *extra)
    backend = DistributedBackend(backend_settings(config), config.namespace())
    try:
        backend.start()
        yield backend
    finally:
        backend.close()


one_kind = pytest.mark.parametrize("backend", ["untied"], indirect=True)


@pytest.fixture
def oracle(backend: Any, tmp_path: Path) -> Iterator[Any]:
    """Builds local backends that start from the distributed policy's present parameters, with a fresh optimizer."""
    made = []

    def make(*extra: str) -> LocalBackend:
        model = backend.args.actor.model_name_or_path
        critic = with_critic(model) if backend.settings.critic else ()
        config = configuration(model, tmp_path, "--backend", "local", *critic, *extra)
        local = LocalBackend(backend_settings(config), config.namespace())
        local.start()
        made.append(local)
        return local

    yield make
    for local in made:
        local.close()


def gains(backend: Any, episodes: list[Episode]) -> np.ndarray:
    """Information gains of two made-up answers, of one and three tokens, as training computes them."""
    answers = [AnswerTokens([5], 0), AnswerTokens([7, 8, 9], 1)]
    probes = Probes.of([replace(episode, answers=answers) for episode in episodes])
    return probes.gains(backend.compute(probes.rows, {LOG_PROB})[LOG_PROB], GainOptions())


def test_updates_match_the_local_backend_and_reach_vllm(backend: Any, oracle: Any) -> None:
    """Fails without: boundary control (only the last micro-batch would train), all rows trained whatever their number,
    the tied head's repacking, the prefix-cache reset, and log-probs of an end token in first position as sampled."""
    before = play(backend, iteration=1)
    assert max(len(step.prompt_ids) for episode in before for step in episode.steps) > 260
    assert all(len(step.response_ids) <= 6 for episode in before for step in episode.steps)
    assert gap(backend, before) <= 5e-6

    # Micro-batches of 4 sequences there; of 1 row, 7 sequences and all sequences here.
    locals_ = [oracle("--train.micro_batch_size", size) for size in ("1", "7", "100")]
    plain = locals_[0].settings
    locals_[0].settings = replace(plain, batches=replace(plain.batches, equal_rows_once=False))
    # Rows with prompts of their own, equal rows with other credit, then the segments of transcripts.
    cases = [rows_of(before, count, seed=index) for index, count in enumerate((12, 37))]
    cases.append(with_repeats(rows_of(before, 30, seed=2), 100))
    cases.append(segments(len(locals_[0].tokenizer), (9, 4, 6, 1, 12, 3, 8)))
    for index, rows in enumerate(cases):
        count = len(rows)
        metrics = backend.update(rows, seed=index)
        assert metrics["policy/rows_trained"] == count
        assert metrics["policy/optimizer_steps"] == -(-count // 20)
        whole, single = (backend.compute(given, {LOG_PROB}) for given in (rows, apart(rows)))
        for name in whole:
            np.testing.assert_allclose(whole[name], single[name], atol=1e-5)
        reached = policy_parameters(backend)
        for local in locals_:
            twin = local.update(rows, seed=index)
            for name in twin.keys() & metrics.keys():
                if name.startswith("policy/"):
                    assert twin[name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), name
            for name, value in local.parameters().items():
                assert float((value - reached[name]).abs().max()) <= 1e-5, name
            if local.critic is not None:
                assert twin["critic/loss"] == pytest.approx(metrics["critic/loss"], rel=1e-4)
                assert twin["critic/grad_norm"] == pytest.approx(metrics["critic/grad_norm"], rel=1e-4)
                for name, value in critic_parameters(backend).items():
                    assert float((value - local.critic.parameters()[name]).abs().max()) <= 1e-5, name

    # The engine still answers with the old weights, also from its prefix cache, until the sync.
    assert gap(backend, play(backend, iteration=1)) > 1e-2
    backend.sync()
    after = play(backend, iteration=1)
    assert gap(backend, after) <= 5e-6
    one_token = [step for episode in after for step in episode.steps if len(step.response_ids) == 1]
    assert one_token, "no action consisted of the end token alone"
    there, here = (gains(asked, after) for asked in (backend, locals_[0]))
    np.testing.assert_allclose(there, here, atol=1e-4)
    assert np.nanstd(there) > 1e-3


@one_kind
def test_engine_log_probs_of_long_prompts_after_a_sync(backend: Any) -> None:
    """Prompt log-probabilities of the engine over more than 260 tokens, asked twice so that the cache answers."""
    import ray

    episodes = play(backend, iteration=2)
    steps = [step for episode in episodes for step in episode.steps if len(step.prompt_ids) > 260][:8]
    rows = rows_of(episodes, 20, seed=5)
    backend.update(rows, seed=5)
    backend.sync()
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(backend.args.actor.model_name_or_path, dtype=torch.float32).eval()
    model.load_state_dict(policy_parameters(backend), strict=False)
    model.tie_weights()
    sequences = [step.prompt_ids + step.response_ids for step in steps]
    for _ in range(2):
        answers = ray.get(backend.fleet.handles[0].log_probs.remote(sequences))
        for ids, answer in zip(sequences, answers, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            expected = logits.gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1)
            assert float((torch.tensor(answer) - expected).abs().max()) <= 5e-6


def has_environment_host() -> bool:
    """Whether Ray runs environments apart from the engine, as processes of this one tell by their titles."""
    titles = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return any(title.startswith("ray::EnvHost") for title in titles)


METHODS = {
    "tied": [["hgpo"], ["graphgpo"]],
    "untied": [["gae", "--algo.advantage.gae_level", level] for level in ("turn", "bilevel", "token")],
}


def test_methods_train_two_iterations(backend: Any, tmp_path: Path) -> None:
    """PPO at all its levels where there is a critic, other estimators where there is none."""

    kind = "untied" if backend.settings.critic else "tied"
    # A process may be about to change its title.
    looks = range(10 if kind == "tied" else 1)
    assert any(time.sleep(0.1) or has_environment_host() for _ in looks) == (kind == "tied")
    for number, (name, *options) in enumerate(METHODS[kind]):
        config = configuration(
            backend.args.actor.model_name_or_path, tmp_path / f"{number}", "--train.num_iterations", "2",
            "--algo.advantage.estimator", name, *options, "--env.eval_split", "valid", "--eval.no_before_train",
            "--rollout.batch_size", "2", "--rollout.n_samples_per_prompt", "2", "--eval.n_samples_per_prompt", "1",
        )  # fmt: skip
        names = [f"vault-train-{index}" for index in range(8)]
        settings = loop_settings(config, names, ["vault-valid-0", "vault-valid-1"])
        run = RunFolder.create(tmp_path / f"{number}", {}, "")
        Trainer(settings, backend, run, Silent()).fit()
        rows = [*run.metrics(), *run.evals()]
        assert glossary.undocumented(rows) == set()
        assert [row["iteration"] for row in run.metrics()] == [1, 2]
        for row in run.metrics():
            assert row["policy/rows_trained"] == row["rollout/steps"]
            assert 0 < row["rollout/prefix_cache_share"] < 1
            assert ("critic/explained_variance" in row) == (kind == "untied")
        if kind == "untied":
            assert max(row["credit/advantage_max"] for row in run.metrics()) > 0


@one_kind
def test_an_iteration_without_rows_changes_nothing(backend: Any) -> None:
    """An estimator may set every group aside."""
    before = policy_parameters(backend)
    assert backend.update([], seed=0)["policy/optimizer_steps"] == 0
    assert all(torch.equal(value, before[name]) for name, value in policy_parameters(backend).items())


@one_kind
def test_steps_whose_gradient_is_not_finite_are_skipped_and_end_the_run(backend: Any) -> None:
    """In fp32 DeepSpeed itself would take them, and every weight would be lost."""
    episodes = play(backend, iteration=2)
    good = rows_of(episodes, 40, seed=8)
    faulty = [replace(row, advantage=float("nan"), value_target=float("inf")) for row in good]
    before = policy_parameters(backend), critic_parameters(backend)
    metrics = backend.update(faulty, seed=8)
    for name in ("policy", "critic"):
        assert metrics[f"{name}/skipped_steps"] == 2
        assert f"{name}/grad_norm" not in metrics
    assert metrics["policy/optimizer_steps"] == metrics["policy/rows_trained"] == 0
    for values, kept in zip((policy_parameters(backend), critic_parameters(backend)), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in values.items())

    # One row of forty: the other step is taken, and its gradient holds nothing of the skipped one's.
    metrics = backend.update([faulty[0], *good[1:]], seed=9)
    assert (metrics["policy/skipped_steps"], metrics["policy/optimizer_steps"]) == (1, 1)
    assert (metrics["critic/skipped_steps"], metrics["policy/rows_trained"]) == (1, 20)
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(value.isfinite().all() for value in policy_parameters(backend).values())
    moved = policy_parameters(backend)
    assert any(not torch.equal(value, moved[name]) for name, value in before[0].items())

    with pytest.raises(DivergenceError, match=r"^the gradient of the (policy|critic) was not finite in 5 .*adam\.lr"):
        backend.update(faulty * 3, seed=10)
    assert backend.update(good, seed=11)["policy/skipped_steps"] == 0


@one_kind
def test_groups_of_uneven_size_and_number_of_steps(backend: Any) -> None:
    """OpenRLHF reshapes samples to groups of n_samples_per_prompt; ours may have lost episodes."""
    episodes = play(backend, iteration=3)
    metrics = backend.update(rows_of(episodes[:3] + episodes[4:9], 23), seed=1)
    assert metrics["policy/rows_trained"] == 23


def during_the_next_rollout(backend: Any, act: Callable[[], None]) -> threading.Thread:
    """Have ``act`` called when the next rollout has taken a step, so that there are workers with episodes."""
    import ray

    engine = backend.fleet.handles[0]
    before = ray.get(engine.env_stats.remote())["env/steps"]

    def wait() -> None:
        while ray.get(engine.env_stats.remote())["env/steps"] == before:
            time.sleep(0.01)
        act()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    return waiting


@one_kind
def test_environment_worker_killed_in_a_rollout_costs_episodes_not_the_run(backend: Any) -> None:
    def kill_one() -> None:
        engine = psutil.Process(backend.fleet.places[0].pid)
        (server,) = [child for child in engine.children() if "agent_envs" in " ".join(child.cmdline())]
        server.children()[0].send_signal(signal.SIGKILL)

    killing = during_the_next_rollout(backend, kill_one)
    episodes = play(backend, iteration=4, tasks=8)
    killing.join(60)
    faulted = [episode for episode in episodes if episode.faulted]
    assert len(episodes) == 32
    assert faulted, "the worker was killed after the rollout had ended"
    assert all(episode.error for episode in faulted)
    assert backend.env_stats()["env/faults"] + backend.env_stats()["env/restarts"] > 0
    assert not any(episode.faulted for episode in play(backend, iteration=5))


@one_kind
def test_an_environment_server_that_dies_is_started_again_and_its_episodes_are_played_again(backend: Any) -> None:
    before = backend.env_stats()
    engine = psutil.Process(backend.fleet.places[0].pid)

    def kill_server() -> None:
        (server,) = [child for child in engine.children() if "agent_envs" in " ".join(child.cmdline())]
        server.send_signal(signal.SIGKILL)

    killing = during_the_next_rollout(backend, kill_server)
    episodes = play(backend, iteration=12, tasks=8)
    killing.join(60)
    counted = {name: value - before[name] for name, value in backend.env_stats().items()}
    assert len(episodes) == 32
    assert not any(episode.faulted for episode in episodes)
    assert (counted["env/servers"], counted["env/engine_restarts"]) == (1, 0)
    assert counted["env/faults"] > 0, "the server was killed outside of the rollout"


@one_kind
def test_an_engine_that_dies_is_started_again_and_its_groups_are_played_again(backend: Any) -> None:
    import ray

    backend.update(rows_of(play(backend, iteration=8), 20, seed=8), seed=8)
    backend.sync()
    lost = backend.fleet.handles[0]
    timer = threading.Timer(0.15, lambda: ray.kill(lost))
    timer.start()
    episodes = play(backend, iteration=9, tasks=8)
    timer.join()
    assert backend.env_stats()["env/engine_restarts"] == 1
    assert len({(episode.group, episode.trajectory) for episode in episodes}) == len(episodes) == 32
    assert not any(episode.faulted for episode in episodes)
    # It has the policy's weights, not those that it was started with.
    assert gap(backend, episodes) <= 5e-6
    # One that died outside a rollout is met by the sync.
    ray.kill(backend.fleet.handles[0])
    backend.update(rows_of(episodes, 20, seed=9), seed=9)
    backend.sync()
    assert backend.env_stats()["env/engine_restarts"] == 2
    assert gap(backend, play(backend, iteration=10)) <= 5e-6


@one_kind
def test_an_engine_that_hangs_is_started_again_too(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hung = backend.fleet.handles[0]
    parts = psutil.Process(backend.fleet.places[0].pid).children(recursive=True)
    restarts = backend.env_stats()["env/engine_restarts"]
    monkeypatch.setattr(backend.fleet, "_stall_s", 30.0)
    hung.transfer_weights.remote(faulty_engines.hang)
    episodes = play(backend, iteration=12)
    assert backend.env_stats()["env/engine_restarts"] == restarts + 1
    assert len(episodes) == 16
    assert not any(episode.faulted for episode in episodes)
    assert gap(backend, episodes) <= 5e-6
    assert psutil.wait_procs(parts, timeout=10)[1] == []


@one_kind
def test_the_stacks_of_all_workers_can_be_read(backend: Any) -> None:
    parts = {part.partition(",")[0]: part for part in backend.stacks().split("--- ")[1:]}
    names = [name.strip().splitlines()[0] for name in parts]
    assert sorted(names) == ["critic", "driver", "policy and reference", "rollout engine"]
    assert all('File "' in part for part in parts.values())


@one_kind
def test_workers_of_models_do_without_vllm(backend: Any) -> None:
    """After all that they do in an iteration, a sync included."""
    libraries = {place.name: Path(f"/proc/{place.pid}/maps").read_text() for place in backend._places}
    assert len(libraries) == 2
    assert [name for name, text in libraries.items() if "/vllm/" in text] == []
    # One that imports it would show: the engine does, or the process of its own in which vLLM runs the model.
    engine = psutil.Process(backend.fleet.places[0].pid)
    parts = [engine, *engine.children(recursive=True)]
    assert any("/vllm/" in Path(f"/proc/{part.pid}/maps").read_text() for part in parts)


@one_kind
def test_a_failure_in_a_worker_is_one_sentence_and_not_the_end(backend: Any) -> None:
    requests = schedule.training_requests(["vault-train-0"], 4, 6, seed=0)
    with pytest.raises(RunError, match=r"a worker failed with RolloutError: episode .* \(its trace is in .*\)") as stop:
        backend.rollout(requests, SamplingParams(max_new_tokens=4, temperature=-1.0), lambda episode: None)
    assert "\n" not in str(stop.value)
    assert len(play(backend, iteration=7)) == 16


@one_kind
def test_a_policy_that_dies_ends_the_run_at_once(backend: Any) -> None:
    """The last test of its backend, which it leaves without a policy."""
    import ray

    rows = rows_of(play(backend, iteration=11), 100, seed=11) * 20
    policy = backend.trainer.actor_model_group.handles[0]
    timer = threading.Timer(0.2, lambda: ray.kill(policy))
    timer.start()
    started = time.monotonic()
    with pytest.raises(RunError, match="a worker failed with ActorDiedError: ") as stop:
        backend.update(rows, seed=11)
    timer.join()
    assert time.monotonic() - started < 30
    assert "\n" not in str(stop.value)
