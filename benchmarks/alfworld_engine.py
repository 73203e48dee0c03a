"""ALFWorld environment against the stock TextWorld engine on generated houses: equality, speed, memory and a profile.

Both play the same random walk and the same expert plan in every game; a difference in an observation, the admissible
commands, the reward or the end stops the run. Times are CPU seconds of this process, taken in turns, so that other
load on the machine hits both. ``--baseline`` adds first resets of never-seen games by the code of another checkout.
Run: ``python benchmarks/alfworld_engine.py --out alfworld.json`` (about ten minutes).
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any

from alfworld_stock import Stock, difference, walk

from agent_envs.alfworld import AlfworldEnv
from agent_envs.alfworld.game import _game
from agent_envs.alfworld.generator import generate
from agent_envs.alfworld.layout import GAME_FILE, GAMES_FOLDER, SPLITS
from agent_envs.alfworld.rooms import SIZES, TASKS
from agent_envs.base import Reset, StepResult

Line = dict[str, float]

_NOT_RECORDED = ("out", "data", "baseline")
"""Arguments that name places of the machine."""
REPOSITORY = Path(__file__).resolve().parents[1]


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def check(task: str, ours: Reset | StepResult, state: Any, reward: float = 0.0, done: bool = False) -> None:
    """Stop unless both show the same."""
    if found := difference(ours, state, reward, done):
        raise SystemExit(f"{task} differs from the stock engine: {found}")


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
    """Let go of all games, so that the next reset finds what it would in a new process."""
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


_UNSEEN = """
import gc, json, sys, time
from agent_envs.alfworld import AlfworldEnv
root, cache, warm, *tasks = sys.argv[1:]
AlfworldEnv.preload()
gc.collect()
gc.freeze()
env = AlfworldEnv(root, cache_dir=cache)
env.reset(warm, 0)
seconds = []
for task in tasks:
    start = time.process_time()
    env.reset(task, 0)
    seconds.append(time.process_time() - start)
json.dump(seconds, sys.stdout)
"""


def unseen_resets(checkout: Path, root: Path, tasks: Sequence[str]) -> list[float]:
    """Seconds of the first reset of each game but the first, by the code of ``checkout``, nothing being kept of any.

    The first game pays for what a process needs once, and is not timed. As in the processes of a pool, the garbage
    collector leaves alone what was imported.
    """
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-c", _UNSEEN, str(root.resolve()), cache, *tasks],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdout=subprocess.PIPE,
            check=True,
        )
    seconds: list[float] = json.loads(done.stdout)
    return seconds


def compare_unseen(baseline: Path, root: Path, tasks: Sequence[str], rounds: int) -> dict[str, float]:
    """First resets of never-seen games by another checkout and by this one, which take turns."""
    checkouts = {"baseline": baseline.resolve(), "here": REPOSITORY}
    seconds: dict[str, list[list[float]]] = {name: [] for name in checkouts}
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            seconds[name].append(unseen_resets(checkout, root, tasks))
    # Of every game, the median over the rounds.
    by_game = {
        name: [statistics.median(times) for times in zip(*found, strict=True)] for name, found in seconds.items()
    }
    ratios = [before / now for before, now in zip(by_game["baseline"], by_game["here"], strict=True)]
    return {
        "games": float(len(ratios)),
        "rounds": float(rounds),
        "baseline_ms": 1e3 * statistics.median(by_game["baseline"]),
        "ms": 1e3 * statistics.median(by_game["here"]),
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
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
        entries = profiler.getstats()
        total = sum(entry.inlinetime for entry in entries)
        ranked = sorted(entries, key=lambda entry: -entry.inlinetime)[:top]
        return [(place(entry.code), entry.inlinetime / total) for entry in ranked]

    def place(code: CodeType | str) -> str:
        return code if isinstance(code, str) else f"{Path(code.co_filename).name}:{code.co_name}"

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
    yield "medians over games. resets: of the game just played; new game: first reset of a game that the machine never"
    yield "met; load: first reset of a game in a process; repeated: a walk that was walked before"
    yield f"{'size':<8}" + "".join(f"{head:>15}" for head, _, _ in columns)
    for size, line in result["sizes"].items():
        yield f"{size:<8}" + "".join(f"{form.format(line[key]):>15}" for _, key, form in columns)
    compared = sum(line["steps_compared"] for line in result["sizes"].values())
    yield f"{compared:.0f} steps equal in observation, commands, reward and end"
    if "unseen" in result:
        yield "first reset of a never-seen game, largest size: " + ", ".join(
            f"{name} {value:.1f}" for name, value in result["unseen"].items()
        )
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
    parser.add_argument("--baseline", type=Path, help="another checkout, to compare first resets of unseen games with")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of that comparison")
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
        if args.baseline:
            result["unseen"] = compare_unseen(args.baseline, root, tasks, args.rounds)
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
    result["arguments"] = {name: str(value) for name, value in vars(args).items() if name not in _NOT_RECORDED}
    for line in table(result):
        sys.stdout.write(line + "\n")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
