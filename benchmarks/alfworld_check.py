"""Plays generated ALFWorld games in our environment and in the stock one at once, and counts what differs.

Of ten games, six are small, three of medium and one of real size; task types and splits take turns. Every game is
played twice: along a random walk, and along the expert's plan with detours. About one command in four is inadmissible:
nonsense, or one that was offered earlier and no longer is. Compared are observation, commands with their order, reward,
end and success. Run: ``python benchmarks/alfworld_check.py --out alfworld_check.json`` (about 12 minutes of a CPU core,
most of it in the stock engine). Ends with status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from alfworld_stock import SUCCESS_REWARD, Stock, difference, walk

from agent_envs.alfworld import AlfworldEnv
from agent_envs.alfworld.generator import generate
from agent_envs.alfworld.layout import CATEGORIES, GAME_FILE, GAMES_FOLDER, SPLITS, task_type_of
from agent_envs.alfworld.rooms import TASKS
from agent_envs.base import StepResult

SIZES_IN_TURN = ("small", "medium", "small", "small", "medium", "small", "small", "medium", "small", "real")
STEPS = 30
_SHOWN = 5


@dataclass
class Count:
    """What was compared, and what differed."""

    games: Counter[str] = field(default_factory=Counter)
    """By size, and by category."""
    steps: int = 0
    inadmissible: int = 0
    won: int = 0
    differences: list[str] = field(default_factory=list)

    def add(self, task: str, found: str) -> None:
        if found:
            self.differences.append(f"{task}: {found}")


def play(
    env: AlfworldEnv, stock: Stock, task: str, rng: random.Random, count: Count, choose: Callable[[Sequence[str]], str]
) -> None:
    """One episode in both; ``choose`` names a command, given those that are offered."""
    start = env.reset(task, 0)
    count.add(task, difference(start, stock.reset()))
    offered, seen = start.admissible_actions, set(start.admissible_actions)
    for _ in range(STEPS):
        gone = sorted(seen.difference(offered))
        command = rng.choice([*gone, "sing"]) if rng.random() < 1 / 8 else choose(offered)
        result: StepResult = env.step(command)
        state, reward, done = stock.step(command)
        count.add(f"{task} after {command!r}", difference(result, state, reward, done))
        count.steps += 1
        count.inadmissible += not result.admissible
        count.won += result.success
        offered = result.admissible_actions
        seen.update(offered)
        if result.terminated or done:
            return


def compare(env: AlfworldEnv, stock: Stock, root: Path, task: str, number: int, count: Count) -> None:
    rng = random.Random(number)
    stock.load(str(root / GAMES_FOLDER / task / GAME_FILE))
    play(env, stock, task, rng, count, lambda offered: walk(rng, offered))
    expert = env.expert()
    play(env, stock, task, rng, count, lambda offered: walk(rng, offered) if rng.random() < 1 / 8 else expert())


def tasks_of(root: Path, games: int, seed: int) -> list[tuple[str, str]]:
    """(size, task id) of the games, which are generated if need be."""
    wanted = Counter((SIZES_IN_TURN[number % 10], SPLITS[number % len(SPLITS)]) for number in range(games))
    return [
        (size, task)
        for (size, split), amount in wanted.items()
        for task in generate(root, split, amount, seed, size, tuple(TASKS))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder to keep the generated games in")
    parser.add_argument("--out", type=Path, help="write the counts to this JSON file")
    args = parser.parse_args(arguments)

    count, stock = Count(), Stock()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.data or Path(scratch)
        tasks = tasks_of(root, args.games, args.seed)
        env = AlfworldEnv(root, max_steps=STEPS + 1, success_reward=SUCCESS_REWARD)
        for number, (size, task) in enumerate(tasks):
            compare(env, stock, root, task, number, count)
            count.games.update((size, CATEGORIES[task_type_of(task)]))
        env.close()
    result = {
        "games": args.games,
        "games_by_size_and_category": dict(count.games),
        "episodes": 2 * args.games,
        "steps": count.steps,
        "inadmissible_steps": count.inadmissible,
        "episodes_won": count.won,
        "differences": len(count.differences),
        "first_differences": count.differences[:_SHOWN],
        "seed": args.seed,
        "machine": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("alfworld", "textworld", "fast-downward-textworld")},
        },
    }
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return 1 if count.differences else 0


if __name__ == "__main__":
    sys.exit(main())
