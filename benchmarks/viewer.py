"""Time the pages of ``gagpo view`` on a generated run of 100,000 steps.

    python benchmarks/viewer.py [--steps N] [--files N] [--repeats N]

The run is made up: groups of eight trajectories that wander through shared states, with prompts of 200 tokens. The
first figure is the index, which is built once; then every page is asked for over HTTP without a socket, and the median
and the slowest of its times are printed as JSON, wall clock and processor. Each page is asked for with other filters,
episodes and groups every time, so that nothing comes from a cache of pages.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from openrlhf_gagpo.rollout.records import StepKey, write_episodes
from openrlhf_gagpo.rollout.types import Episode, Step
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.viewer.app import make_app
from openrlhf_gagpo.viewer.store import Store

LENGTH = 14
GROUP = 8
STATES = 30


def main() -> int:
    """Generate the run, time the pages and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=100, help="iterations over which the steps are spread")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "generated", options.steps, options.files)
        print(json.dumps(measure(run, options.repeats), indent=2))  # noqa: T201
    return 0


def make_run(path: Path, steps: int, files: int) -> RunFolder:
    """Write a run of about ``steps`` steps in ``files`` iterations."""
    run = RunFolder.create(path, {"values": {"env": {"name": "made up"}}}, "{{ observation }}", seed=0)
    groups = -(-steps // (files * GROUP * LENGTH))
    with run.tracked():
        for iteration in range(1, files + 1):
            chance = random.Random(iteration)
            episodes = [_episode(iteration, group, n, chance) for group in range(groups) for n in range(GROUP)]
            credit: dict[StepKey, dict[str, float]] = {
                (e.group, e.trajectory, s.index): {
                    name: chance.gauss(0, 1) for name in ("advantage", "return", "value", "td_residual")
                }
                for e in episodes
                for s in e.steps
            }
            write_episodes(run.rollout_path(iteration), episodes, credit)
            run.append_metrics(iteration, {f"rollout/m{n}": chance.random() for n in range(60)} | {"rollout/steps": 1})
    return run


def measure(run: RunFolder, repeats: int) -> dict[str, Any]:
    """Return the times of the index and of every page, in seconds."""
    started, used = time.perf_counter(), time.process_time()
    store = Store([run.path])
    (source,) = store.sources()
    listing = store.listing(source, wait=True)
    built = {"wall": time.perf_counter() - started, "cpu": time.process_time() - used}
    # A new process finds the index on disk.
    started = time.perf_counter()
    store = Store([run.path])
    store.listing(source, wait=True)
    loaded = time.perf_counter() - started
    chance = random.Random(0)
    client = TestClient(make_app(store), base_url="http://localhost")

    def page() -> int:
        return chance.randint(1, 40)

    def episode() -> str:
        facts = chance.choice(listing.episodes)
        return f"e/{facts.part}/{facts.number}"

    def group() -> str:
        facts = chance.choice(listing.episodes)
        return f"g/{facts.part}/{facts.group}?state=S{chance.randint(1, 9)}"

    key = source.key
    pages = {
        "runs": lambda: "/",
        "run": lambda: f"/s/{key}?x=steps&show=rollout",
        "episodes": lambda: f"/s/{key}/episodes?page={page()}",
        "episodes, filtered": lambda: f"/s/{key}/episodes?outcome=solved&length={chance.randint(5, 9)}-&order=best",
        "episodes, words": lambda: f"/s/{key}/episodes?text=task-{page()}",
        "episode": lambda: f"/s/{key}/{episode()}",
        "tokens of a step": lambda: f"/s/{key}/{episode()}/0",
        "group": lambda: f"/s/{key}/{group()}",
        "poll": lambda: f"/stamp?of={key}",
    }
    return {
        "steps": sum(facts.steps for facts in listing.episodes),
        "episodes": len(listing.episodes),
        "files": len(source.parts()),
        "index_build_s": built,
        "index_load_s": loaded,
        "pages_s": {name: _times(client, address, repeats) for name, address in pages.items()},
    }


def _times(client: TestClient, address: Any, repeats: int) -> dict[str, float]:
    wall, cpu = [], []
    for _ in range(repeats):
        path = address()
        started, used = time.perf_counter(), time.process_time()
        answer = client.get(path)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
        if answer.status_code != 200:
            raise RuntimeError(f"{path} answered {answer.status_code}")
    return {
        "median": statistics.median(wall),
        "slowest": max(wall),
        "cpu_median": statistics.median(cpu),
        "cpu_slowest": max(cpu),
    }


def _episode(iteration: int, group: int, number: int, chance: random.Random) -> Episode:
    length = chance.randint(LENGTH - 4, LENGTH + 4)
    success = chance.random() < 0.5
    states = [f"{group}:0", *(f"{group}:{chance.randrange(1, STATES)}" for _ in range(length))]
    steps = [
        Step(
            index=i,
            state_key=states[i],
            next_state_key=states[i + 1],
            observation=f"You are in room {states[i]} of the house. " + "You see a closed drawer and a lamp. " * 4,
            action=f"go to drawer {chance.randrange(9)}",
            reward=float(success and i == length - 1),
            terminated=success and i == length - 1,
            truncated=not success and i == length - 1,
            format_valid=chance.random() > 0.02,
            admissible=True,
            prompt_ids=[chance.randrange(150_000) for _ in range(200)],
            response_ids=[chance.randrange(150_000) for _ in range(40)],
            sampling_log_probs=[-chance.random() for _ in range(40)],
            response="<think>The lamp is the goal.</think><action>go to drawer</action>",
        )
        for i in range(length)
    ]
    return Episode(
        task=f"task-{chance.randrange(400)}",
        group=f"i{iteration}g{group}",
        trajectory=f"i{iteration}g{group}t{number}",
        env_seed=number,
        steps=steps,
        end_reason="terminated" if success else "truncated",
        category=f"kind {group % 6}",
        success=success,
        score=float(success),
    )


if __name__ == "__main__":
    sys.exit(main())
