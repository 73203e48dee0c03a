"""ALFWorld environment against the stock TextWorld engine on generated houses: equality, speed, memory and a profile.

Both play the same random walk and the same expert plan in every game; a difference in an observation, the admissible
commands, the reward or the end stops the run. Times are CPU seconds of this process, taken in turns, so that other
load on the machine hits both. Run: ``python benchmarks/alfworld_engine.py --out alfworld.json`` (about ten minutes).
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import multiprocessing
import platform
import pstats
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld import EnvInfos
from textworld.envs.pddl import PddlEnv

from agent_envs.alfworld import AlfworldEnv
from agent_envs.alfworld.game import _game
from agent_envs.alfworld.generator import generate
from agent_envs.alfworld.layout import GAME_FILE, GAMES_FOLDER, SPLITS
from agent_envs.alfworld.rooms import SIZES, TASKS
from agent_envs.base import Reset, StepResult

Line = dict[str, float]


class Stock:
    """The stock environment as ALFWorld sets it up, without the planner's commands."""

    def __init__(self) -> None:
        self._env = AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True)), shuffle=False)
        self.load = self._env.load
        self.reset = self._env.reset
        self.step = self._env.step


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def check(task: str, ours: Reset | StepResult, state: Any, reward: float = 0.0, done: bool = False) -> None:
    """Stop unless both show the same."""
    offered = tuple(command for command in state["admissible_commands"] if command != "help")
    same = ours.observation == state["feedback"] and ours.admissible_actions == offered
    if isinstance(ours, StepResult):
        same = same and (ours.reward, ours.terminated) == (10.0 * reward, done)
    if not same:
        raise SystemExit(f"{task} differs from the stock engine:\n{ours}\n{state['feedback']}\n{offered}")


def walk(rng: random.Random, offered: Sequence[str]) -> str:
    """A random command; more often one that does something than one that only moves, and now and then nonsense."""
    acts = [command for command in offered if not command.startswith("go to")]
    return rng.choice(
        [rng.choice(offered), rng.choice(acts), rng.choice(acts), rng.choice(("help", "sing", offered[0]))]
    )


def play(env: AlfworldEnv, stock: Stock, task: str, commands: Iterable[str]) -> tuple[float, float, list[str]]:
    """Seconds of both over the same commands (an iterator may look at ``env``), and the commands played."""
    check(task, env.reset(task, 0), stock.reset())
    seconds = stock_seconds = 0.0
    played = []
    for command in commands:
        spent, result = timed(env.step, command)
        stock_spent, (state, reward, done) = timed(stock.step, command)
        check(task, result, state, reward, done)
        seconds += spent
        stock_seconds += stock_spent
        played.append(command)
        if result.terminated:
            break
    return seconds, stock_seconds, played


def as_new_process(env: AlfworldEnv) -> None:
    """Let go of all games, so that the next reset finds what it would in a new process: the translation on disk."""
    env.close()
    _game.cache_clear()


def wander(env: AlfworldEnv, seed: int, steps: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(steps):
        yield walk(rng, env._view.commands)


def compare(env: AlfworldEnv, stock: Stock, root: Path, task: str, steps: int, resets: int) -> Line:
    """One game in both environments; no process has played it before."""
    untranslated, _ = timed(env.reset, task, 0)
    as_new_process(env)
    first, start = timed(env.reset, task, 0)
    stock_load, _ = timed(stock.load, str(root / GAMES_FOLDER / task / GAME_FILE))
    stock_reset, state = timed(stock.reset)
    check(task, start, state)
    again = [timed(env.reset, task, 0)[0] for _ in range(resets)]
    stock_again = [stock_reset, *(timed(stock.reset)[0] for _ in range(resets - 1))]

    seconds, stock_seconds, played = play(env, stock, task, wander(env, 0, steps))
    env.reset(task, 0)
    repeated, _ = timed(lambda: [env.step(command) for command in played])

    expert = env.expert()
    env.reset(task, 0)
    plan_seconds, _ = timed(expert)
    _, _, plan = play(env, stock, task, (expert() for _ in range(env.max_steps)))
    return {
        "stock_step_s": stock_seconds / len(played),
        "step_s": seconds / len(played),
        "repeated_step_s": repeated / len(played),
        "stock_reset_s": statistics.median(stock_again),
        "reset_s": statistics.median(again),
        "stock_first_reset_s": stock_load + stock_reset,
        "first_reset_s": first,
        "untranslated_reset_s": untranslated,
        "plan_s": plan_seconds,
        "steps_compared": float(len(played) + len(plan)),
        "won": float(env._view.won),
    }


def summary(lines: Sequence[Line]) -> dict[str, float]:
    """Medians over games; ratios are medians of the games' own ratios."""

    def median(value: Callable[[Line], float]) -> float:
        return statistics.median(map(value, lines))

    return {
        "games": float(len(lines)),
        "steps_compared": sum(line["steps_compared"] for line in lines),
        "plans_won": sum(line["won"] for line in lines),
        "stock_steps_per_s": median(lambda line: 1 / line["stock_step_s"]),
        "steps_per_s": median(lambda line: 1 / line["step_s"]),
        "repeated_steps_per_s": median(lambda line: 1 / line["repeated_step_s"]),
        "step_ratio": median(lambda line: line["stock_step_s"] / line["step_s"]),
        "repeated_step_ratio": median(lambda line: line["stock_step_s"] / line["repeated_step_s"]),
        "stock_resets_per_s": median(lambda line: 1 / line["stock_reset_s"]),
        "resets_per_s": median(lambda line: 1 / line["reset_s"]),
        "reset_ratio": median(lambda line: line["stock_reset_s"] / line["reset_s"]),
        "stock_first_reset_ms": median(lambda line: 1e3 * line["stock_first_reset_s"]),
        "first_reset_ms": median(lambda line: 1e3 * line["first_reset_s"]),
        "first_reset_ratio": median(lambda line: line["stock_first_reset_s"] / line["first_reset_s"]),
        "untranslated_reset_ms": median(lambda line: 1e3 * line["untranslated_reset_s"]),
        "untranslated_reset_ratio": median(lambda line: line["stock_first_reset_s"] / line["untranslated_reset_s"]),
        "plan_ms": median(lambda line: 1e3 * line["plan_s"]),
    }


def resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(root: str, tasks: Sequence[str], episodes: int) -> dict[str, float]:
    """MB per environment, and growth over many resets of one game and of all games; run in a process of its own."""

    def episode(env: AlfworldEnv, task: str, seed: int, steps: int) -> None:
        env.reset(task, 0)
        for command in wander(env, seed, steps):
            if env.step(command).terminated:
                break

    AlfworldEnv.preload()
    before = resident_mb()
    envs = [AlfworldEnv(root, cache_dir=Path(root) / "cache") for _ in range(8)]
    for number, env in enumerate(envs):
        episode(env, tasks[number % len(tasks)], seed=number, steps=50)
    per_env = (resident_mb() - before) / len(envs)

    env, task = envs[0], tasks[0]
    for number in range(episodes // 5):
        episode(env, task, seed=number, steps=10)
    before = resident_mb()
    for number in range(episodes):
        episode(env, task, seed=number, steps=10)
    same_game = resident_mb() - before

    for task in tasks:
        episode(env, task, seed=0, steps=10)
    before = resident_mb()
    for number in range(2):
        for task in tasks:
            episode(env, task, seed=number, steps=10)
    return {
        "per_environment_mb": per_env,
        "resets": float(episodes),
        "growth_one_game_mb": same_game,
        "game_switches": 2.0 * len(tasks),
        "growth_all_games_mb": resident_mb() - before,
    }


def profile(env: AlfworldEnv, tasks: Sequence[str], steps: int, top: int) -> dict[str, list[tuple[str, float]]]:
    """What still takes time: share of own time by function, for first resets and for steps."""

    def shares(work: Callable[[], None]) -> list[tuple[str, float]]:
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(work)
        entries = pstats.Stats(profiler).stats.items()
        total = sum(entry[2] for _, entry in entries)
        ranked = sorted(entries, key=lambda item: -item[1][2])[:top]
        return [(f"{Path(file).name}:{name}", entry[2] / total) for (file, _, name), entry in ranked]

    def load() -> None:
        for task in tasks:
            env.reset(task, 0)

    def step() -> None:
        for task in tasks:
            env.reset(task, 0)
            for command in wander(env, 1, steps):
                if env.step(command).terminated:
                    break

    return {"first_reset": shares(load), "step": shares(step)}


def table(result: dict[str, Any]) -> Iterator[str]:
    columns = (
        ("games", "games", "{:.0f}"),
        ("stock steps/s", "stock_steps_per_s", "{:.1f}"),
        ("steps/s", "steps_per_s", "{:.0f}"),
        ("ratio", "step_ratio", "{:.0f}"),
        ("repeated/s", "repeated_steps_per_s", "{:.0f}"),
        ("stock resets/s", "stock_resets_per_s", "{:.2f}"),
        ("resets/s", "resets_per_s", "{:.0f}"),
        ("ratio", "reset_ratio", "{:.0f}"),
        ("stock load ms", "stock_first_reset_ms", "{:.0f}"),
        ("load ms", "first_reset_ms", "{:.0f}"),
        ("ratio", "first_reset_ratio", "{:.0f}"),
        ("new game ms", "untranslated_reset_ms", "{:.0f}"),
        ("ratio", "untranslated_reset_ratio", "{:.1f}"),
        ("plan ms", "plan_ms", "{:.0f}"),
    )
    yield "medians over games. resets: of the game just played; load: first reset of a game in a process, with its"
    yield "translation on disk; new game: not translated before; repeated: a walk that was walked before"
    yield f"{'size':<8}" + "".join(f"{head:>15}" for head, _, _ in columns)
    for size, line in result["sizes"].items():
        yield f"{size:<8}" + "".join(f"{form.format(line[key]):>15}" for _, key, form in columns)
    compared = sum(line["steps_compared"] for line in result["sizes"].values())
    yield f"{compared:.0f} steps equal in observation, commands, reward and end"
    if "memory" in result:
        yield "memory: " + ", ".join(f"{name} {value:.1f}" for name, value in result["memory"].items())
    for part, entries in result["profile"].items():
        yield f"own time, {part}: " + ", ".join(f"{name} {share:.0%}" for name, share in entries)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", type=int, default=4, help="games per size, split and task type")
    parser.add_argument("--steps", type=int, default=30, help="steps of the random walk")
    parser.add_argument("--resets", type=int, default=3, help="timed resets per game and environment")
    parser.add_argument("--episodes", type=int, default=1000, help="episodes of the leak check; 0 skips memory")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--data", type=Path, help="folder to keep the generated games in")
    parser.add_argument("--workers", type=int, default=1, help="processes that generate games")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as scratch:
        root = args.data or Path(scratch)
        # Neither engine stops a walk early, and the first game does not pay for what a process needs once.
        AlfworldEnv.preload()
        result: dict[str, Any] = {"sizes": {}}
        stock = Stock()
        for size in args.sizes:
            tasks = [
                task
                for split in SPLITS
                for task in generate(
                    root, split, args.games * len(TASKS), args.seed, size, tuple(TASKS), workers=args.workers
                )
            ]
            env = AlfworldEnv(root, max_steps=10 * args.steps, cache_dir=Path(scratch) / "cache")
            result["sizes"][size] = summary(
                [compare(env, stock, root, task, args.steps, args.resets) for task in tasks]
            )
        result["profile"] = profile(env, tasks[: len(TASKS)], steps=10 * args.steps, top=8)
        if args.episodes:
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                result["memory"] = pool.apply(memory, (str(root), tasks, args.episodes))
    result["machine"] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version(name) for name in ("alfworld", "textworld", "fast-downward-textworld")},
    }
    result["arguments"] = {name: str(value) for name, value in vars(args).items() if name != "out"}
    for line in table(result):
        sys.stdout.write(line + "\n")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
