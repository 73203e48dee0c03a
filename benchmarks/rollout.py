"""Compare concurrent with lock-step rollout: the same engine, tasks, environments and policy, one after the other.

Several published trainers play agents in lock-step: every turn has one batch of generations for all episodes, then all
environment steps. There are two variants: ``lockstep`` drops finished episodes from the batch, ``lockstep_all`` goes on
generating for them until the last one ends. Concurrent is this project's rollout, in which each episode waits only for
its own generation and its own environment step.

    python benchmarks/rollout.py --model runs/.../start --out benchmarks/results/rollout.json

``--env_latency`` adds an exponentially distributed wait (mean in seconds) to every step, like a slower environment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import ray

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.backends.distributed import engine as engine_module
from openrlhf_gagpo.backends.distributed.backend import DistributedBackend
from openrlhf_gagpo.backends.distributed.engine import AgentRolloutActorBase, EnginePolicy
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings, sampling
from openrlhf_gagpo.rollout.parse import parse_action
from openrlhf_gagpo.rollout.types import EpisodeRequest, SamplingParams
from openrlhf_gagpo.training.schedule import training_requests

RECIPE = Path(__file__).resolve().parents[1] / "examples/recipes/vault_demo.yaml"


class SlowSession:
    """An environment session whose steps take a random extra time, the same for the same seed and step."""

    def __init__(self, session: Any, latency: float, seed: int) -> None:
        self.session, self.latency, self.random = session, latency, random.Random(seed)

    async def reset(self, task: str, seed: int) -> Any:
        return await self.session.reset(task, seed)

    async def step(self, action: str) -> Any:
        if self.latency:
            await asyncio.sleep(self.random.expovariate(1 / self.latency))
        return await self.session.step(action)

    async def close(self) -> None:
        await self.session.close()


class BenchmarkActor(AgentRolloutActorBase):
    """The rollout actor with both ways of playing."""

    async def __init__(self, *args: Any, **kwargs: Any) -> None:
        await AgentRolloutActorBase.__init__(self, *args, **kwargs)

    async def timed(self, mode: str, requests: list[EpisodeRequest], params: SamplingParams, latency: float) -> Any:
        """Return the seconds and the number of environment steps."""
        player = self.player
        opened = iter(range(10**9))
        pool_open = player._pool.open

        async def open_session() -> SlowSession:
            return SlowSession(await pool_open(), latency, next(opened))

        started = time.perf_counter()
        if mode == "concurrent":
            player._pool.open = open_session
            try:
                episodes = await player.play(requests, EnginePolicy(self.llm), params)
            finally:
                player._pool.open = pool_open
            steps = sum(len(episode.steps) for episode in episodes)
        else:
            steps = await self._lockstep(requests, params, open_session, generate_finished=mode == "lockstep_all")
        return time.perf_counter() - started, steps

    async def _lockstep(self, requests: Any, params: Any, open_session: Any, generate_finished: bool) -> int:
        player, policy = self.player, EnginePolicy(self.llm)
        sessions = [await open_session() for _ in requests]
        now = await asyncio.gather(
            *(
                session.reset(request.task, request.env_seed)
                for session, request in zip(sessions, requests, strict=True)
            )
        )
        done = [False] * len(requests)
        steps = turn = 0
        while not all(done):
            active = [index for index in range(len(requests)) if generate_finished or not done[index]]
            prompts = [
                player._prompts.build("", [], now[index].observation, now[index].admissible_actions, turn)
                for index in active
            ]
            completions = await asyncio.gather(*(policy.generate(prompt, params) for prompt in prompts))
            stepping = [
                (index, completion) for index, completion in zip(active, completions, strict=True) if not done[index]
            ]
            actions = [
                parse_action(player._decode(completion.token_ids), think=False, action_tags=False).action
                for _, completion in stepping
            ]
            results = await asyncio.gather(
                *(sessions[index].step(action) for (index, _), action in zip(stepping, actions, strict=True))
            )
            for (index, _), result in zip(stepping, results, strict=True):
                now[index] = result
                done[index] = result.terminated or result.truncated
            steps += len(stepping)
            turn += 1
        for session in sessions:
            await session.close()
        return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder made by gagpo warmstart for the vault")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--env_latency", type=float, nargs="+", default=[0.0, 0.02])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    hygiene.apply()

    config = resolve(["--config", str(RECIPE), "--actor.model_name_or_path", options.model, "--algo.kl.init_coef", "0"])
    engine_module.AgentRolloutActor = ray.remote(BenchmarkActor)
    backend = DistributedBackend(backend_settings(config), config.namespace())
    tasks = [f"vault-train-{index}" for index in range(options.groups)]
    rows = []
    try:
        backend.start()
        engine = backend.engines[0]
        for latency in options.env_latency:
            times: dict[str, list[float]] = {mode: [] for mode in ("concurrent", "lockstep", "lockstep_all")}
            for repeat in range(-1, options.repeats):  # the first round warms up
                for mode, seen in times.items():
                    requests = training_requests(tasks, options.members, repeat + 2, 0)
                    seconds, steps = ray.get(engine.timed.remote(mode, requests, sampling(config), latency))
                    if repeat >= 0:
                        seen.append(steps / seconds)
            median = {mode: statistics.median(values) for mode, values in times.items()}
            rows.append(
                {
                    "env_latency_s": latency,
                    "episodes": options.groups * options.members,
                    "steps_per_s": median,
                    "all_steps_per_s": times,
                    "ratio_to_lockstep": median["concurrent"] / median["lockstep"],
                    "ratio_to_lockstep_all": median["concurrent"] / median["lockstep_all"],
                }
            )
    finally:
        backend.close()
    report = {"cores": os.cpu_count(), "rows": rows}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        sys.stdout.write(
            f"latency {row['env_latency_s']:.3f} s: concurrent {row['steps_per_s']['concurrent']:.0f} steps/s, "
            f"{row['ratio_to_lockstep']:.2f} x lock-step, {row['ratio_to_lockstep_all']:.2f} x lock-step for all\n"
        )


if __name__ == "__main__":
    main()
