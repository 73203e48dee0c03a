"""PPO's critic on two ranks of its own beside two of the policy: against the local backend, and its checkpoints."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openrlhf_gagpo.backends.local import LocalBackend
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings
from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.training.rows import TrainingRow
from support.models import make_critic, make_model

FLAGS = [
    "--env.name", "vault", "--rollout.batch_size", "2", "--rollout.n_samples_per_prompt", "2",
    "--rollout.max_new_tokens", "6", "--data.max_len", "128", "--rollout.micro_batch_size", "4",
    "--train.batch_size", "20", "--train.micro_batch_size", "3", "--ds.param_dtype", "fp32",
    "--train.num_iterations", "10", "--algo.advantage.estimator", "gae", "--algo.kl.init_coef", "0",
    "--actor.adam.lr", "3e-3", "--actor.adam.eps", "1e-4",
    "--critic.adam.lr", "3e-3", "--critic.adam.eps", "1e-4", "--actor.policy_loss_type", "ppo",
]  # fmt: skip
PLACEMENT = [
    "--actor.num_gpus_per_node", "2", "--critic.num_gpus_per_node", "2", "--vllm.num_engines", "1",
    "--vllm.enforce_eager", "--ds.zero_stage", "1", "--train.no_colocate_all",
]  # fmt: skip

Start = Callable[..., Any]


@pytest.fixture
def start(ray_runtime: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts backends from the same saved policy and critic."""
    from openrlhf_gagpo.backends.distributed.backend import DistributedBackend

    model = make_model(tmp_path / "model", tied=True)
    critic = make_critic(model, tmp_path / "critic")
    made: list[Any] = []

    def backend(*extra: str) -> Any:
        paths = ["--actor.model_name_or_path", str(model), "--critic.model_name_or_path", str(critic)]
        config = resolve([*FLAGS, *paths, "--run_dir", str(tmp_path / "run"), *extra])
        kind = LocalBackend if config.backend == "local" else DistributedBackend
        made.append(kind(backend_settings(config), config.namespace()))
        made[-1].start()
        return made[-1]

    yield backend
    for each in made:
        each.close()


def rows(backend: LocalBackend, count: int, *, by_token: bool) -> list[TrainingRow]:
    """Random rows with the critic's values and random targets, at the ends of prompts or at every token."""
    rng = np.random.default_rng(count)
    words = len(backend.tokenizer)
    plain = [
        TrainingRow(
            prompt_ids=rng.integers(3, words, int(rng.integers(3, 60))).tolist(),
            response_ids=response,
            sampling_log_probs=[-1.0] * len(response),
            advantage=float(rng.normal()),
            trajectory=f"t{index}",
        )
        for index in range(count)
        for response in [rng.integers(3, words, int(rng.integers(1, 6))).tolist()]
    ]
    columns = backend.compute(plain, {"value"})
    values = np.split(columns["token_value"], np.cumsum([len(row.response_ids) for row in plain])[:-1])
    return [
        replace(
            row,
            value=float(columns["value"][index]),
            token_values=values[index],
            value_target=None if by_token else float(rng.normal()),
            token_value_targets=rng.normal(size=len(row.response_ids)) if by_token else None,
            token_advantages=rng.normal(size=len(row.response_ids)) if by_token else None,
        )
        for index, row in enumerate(plain)
    ]


def parameters(group: Any) -> list[dict[str, torch.Tensor]]:
    return group.run("parameters")


def assert_equal(distributed: Any, local: LocalBackend) -> None:
    assert local.critic is not None
    for group, expected in (
        (distributed.trainer.actor_model_group, local.parameters()),
        (distributed.trainer.critic_model_group, local.critic.parameters()),
    ):
        for rank in parameters(group):
            for name, value in rank.items():
                assert float((value - expected[name]).abs().max()) <= 1e-5, name


def test_two_ranks_reach_the_parameters_of_one_process(start: Start) -> None:
    backend, local = start(*PLACEMENT), start("--backend", "local", "--train.micro_batch_size", "20")
    for seed, (count, by_token) in enumerate(((37, False), (12, True), (1, False))):
        given = rows(local, count, by_token=by_token)
        computed, expected = backend.compute(given, {"value"}), local.compute(given, {"value"})
        for name, values in expected.items():
            np.testing.assert_allclose(computed[name], values, atol=1e-5)
        metrics, twin = backend.update(given, seed), local.update(given, seed)
        for name in ("critic/loss", "critic/grad_norm", "critic/value_mean", "policy/grad_norm"):
            assert metrics[name] == pytest.approx(twin[name], rel=1e-3, abs=1e-6), name
        assert metrics["policy/rows_trained"] == count
        assert_equal(backend, local)
    given = rows(local, 23, by_token=False)
    warm_up = backend.update(given, 3, policy=False)
    assert warm_up["policy/optimizer_steps"] == 0
    local.update(given, 3, policy=False)
    assert_equal(backend, local)

    check_checkpoints(backend, given)

    check_a_death(backend, given * 100)


def check_a_death(backend: Any, given: list[TrainingRow]) -> None:
    """A rank of the critic dies while it trains; the other three, of which one waits for it, do not keep the run."""
    import ray

    critic = backend.trainer.critic_model_group
    scatter = critic.scatter
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        ray.kill(critic.handles[1])

    def scatter_and_kill(method: str, *args: Any, **named: Any) -> Any:
        if method == "train":
            threading.Timer(0.3, kill).start()
        return scatter(method, *args, **named)

    critic.scatter = scatter_and_kill
    # The other rank may notice first that nobody is there.
    with pytest.raises(RunError, match=r"a worker failed with (ActorDiedError|RuntimeError): ") as stop:
        backend.update(given, 5, policy=False)
    assert time.monotonic() - killed[0] < 30
    assert "\n" not in str(stop.value)


def check_checkpoints(backend: Any, given: list[TrainingRow]) -> None:
    """The newest checkpoint is damaged; from the one before, both models go on as they did, in every bit."""
    groups = backend.trainer.actor_model_group, backend.trainer.critic_model_group
    backend.save_checkpoint("global_step4", {"iteration": 4})
    saved = [parameters(group) for group in groups]
    metrics = backend.update(given, 4)
    reached = [parameters(group) for group in groups]
    backend.save_checkpoint("global_step5", {"iteration": 5})
    root = backend.settings.checkpoints.path
    assert {path.name for path in root.iterdir()} == {"global_step4", "global_step5", "latest"}
    # What only one of the ranks reads, with a size that tells nothing; then what is noticed before anything is read.
    (part,) = root.glob("global_step5/critic/*zero_pp_rank_1*optim_states.pt")
    part.write_bytes(bytes(part.stat().st_size))
    for _ in range(2):
        restored = backend.load_checkpoint()
        assert restored is not None
        assert (restored.state, restored.path) == ({"iteration": 4}, root / "global_step4")
        assert list(restored.unreadable) == [str(root / "global_step5")]
        assert_same(saved, [parameters(group) for group in groups])
        part.unlink(missing_ok=True)
    assert "critic" in restored.unreadable[str(root / "global_step5")]
    again = backend.update(given, 4)
    assert untimed(again) == untimed(metrics)
    assert_same(reached, [parameters(group) for group in groups])


def assert_same(one: list[list[dict[str, torch.Tensor]]], other: list[list[dict[str, torch.Tensor]]]) -> None:
    for ranks, others in zip(one, other, strict=True):
        for values, expected in zip(ranks, others, strict=True):
            assert [name for name, value in values.items() if not torch.equal(value, expected[name])] == []


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}
