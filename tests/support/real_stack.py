"""A running distributed backend in tests: its configuration, episodes and rows for it, and what its workers hold."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.rollout.types import Episode, SamplingParams
from openrlhf_gagpo.training import schedule
from openrlhf_gagpo.training.rows import TrainingRow
from support.models import make_critic

# The long prompts of an instruction, a history and a list of actions: several 128-token blocks of vLLM's CPU cache.
FLAGS = [
    "--env.name", "vault", "--rollout.batch_size", "4", "--rollout.n_samples_per_prompt", "4",
    "--rollout.max_new_tokens", "6", "--rollout.history_length", "12", "--data.max_len", "1024",
    "--rollout.micro_batch_size", "16", "--train.batch_size", "20", "--train.micro_batch_size", "4",
    "--actor.num_gpus_per_node", "1", "--train.colocate_all", "--vllm.num_engines", "1",
    "--vllm.enable_prefix_caching", "--vllm.enforce_eager", "--ds.param_dtype", "fp32", "--ds.zero_stage", "2",
    "--actor.adam.lr", "3e-3", "--actor.adam.eps", "1e-4", "--actor.lr_warmup_ratio", "0", "--train.num_iterations",
    "10", "--algo.kl.init_coef", "0.05",
]  # fmt: skip


class Silent:
    """An observer that shows nothing."""

    def phase(self, *_: object) -> None: ...

    episode = iteration = evaluation = phase


def configuration(model: Path, run_dir: Path, *extra: str) -> Any:
    return resolve([*FLAGS, "--actor.model_name_or_path", str(model), "--run_dir", str(run_dir), *extra])


def with_critic(model: Path | str) -> list[str]:
    """The flags of PPO with a critic that starts from saved weights, so that two backends start from the same ones."""
    critic = make_critic(Path(model), Path(model).parent / "critic")
    flags = "--algo.advantage.estimator gae --critic.adam.lr 3e-3 --critic.adam.eps 1e-4"
    return [*flags.split(), "--critic.model_name_or_path", str(critic)]


def play(backend: Any, iteration: int, tasks: int = 4) -> list[Episode]:
    names = [f"vault-train-{index}" for index in range(tasks)]
    requests = schedule.training_requests(names, 4, iteration, seed=0)
    sampling = SamplingParams(max_new_tokens=6, temperature=backend.settings.temperature)
    return backend.rollout(requests, sampling, lambda episode: None)


def rows_of(episodes: list[Episode], count: int, seed: int = 0) -> list[TrainingRow]:
    """Recorded steps with made-up advantages of both signs, and targets for a critic at the ends of prompts."""
    rng = random.Random(seed)
    steps = [(episode, step) for episode in episodes for step in episode.steps]
    assert len(steps) >= count
    return [
        TrainingRow(
            prompt_ids=step.prompt_ids,
            response_ids=step.response_ids,
            sampling_log_probs=step.sampling_log_probs,
            advantage=rng.gauss(0, 1),
            trajectory=episode.trajectory,
            step=step.index,
            value=rng.gauss(0, 0.1),
            value_target=rng.gauss(0, 1),
        )
        for episode, step in rng.sample(steps, count)
    ]


def with_repeats(rows: list[TrainingRow], count: int) -> list[TrainingRow]:
    """Rows drawn from ``rows`` again and again, with credit and recorded log-probabilities of their own."""
    rng = random.Random(count)
    return [
        replace(
            row,
            advantage=rng.gauss(0, 1),
            clip_scale=rng.uniform(0.5, 2),
            sampling_log_probs=[value + rng.gauss(0, 0.1) for value in row.sampling_log_probs],
            value=rng.gauss(0, 0.1),
            value_target=rng.gauss(0, 1),
        )
        for row in rng.choices(rows, k=count)
    ]


def policy_parameters(backend: Any) -> dict[str, torch.Tensor]:
    """The policy's parameters, with adapters under the names that they have in the local backend."""
    found = backend.trainer.actor_model_group.run("parameters")[0]
    return {name.removeprefix("base_model.model."): value for name, value in found.items()}


def critic_parameters(backend: Any) -> dict[str, torch.Tensor]:
    return backend.trainer.critic_model_group.run("parameters")[0]


def gap(backend: Any, episodes: list[Episode]) -> float:
    """Largest difference between sampling and training log-probabilities over all sampled tokens."""
    rows = rows_of(episodes, sum(len(episode.steps) for episode in episodes))
    trained = backend.trainer.log_probs(rows)
    return max(
        float((torch.tensor(row.sampling_log_probs) - value).abs().max())
        for row, value in zip(rows, trained, strict=True)
    )
