"""Speed and memory of WebShop on generated catalogues, beside recorded figures of the original program.

Each catalogue is measured in processes of its own: one packs it, another opens the packed copy and plays.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent_envs.webshop import WebShopEnv
from agent_envs.webshop.generator import generate

FULL_CATALOGUE = 1_180_000
"""Products of the official full catalogue, about."""
UPSTREAM = {
    300: {"steps_per_s": "44", "resets_per_s": "196", "warm_s": "", "memory": ""},
    10_000: {"steps_per_s": "29-33", "resets_per_s": "161", "warm_s": "1.5-2.3", "memory": "520-570"},
}
"""Recorded on a shared two-core machine, one process, text mode."""
MIB = 2**20


def memory() -> dict[str, float]:
    """Of this process, MiB: its own pages, pages of mapped files (shared between processes), the most it ever held."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own = kib["Anonymous"]
    return {"own_mib": own / 1024, "mapped_mib": (kib["Rss"] - own) / 1024, "peak_mib": peak / 1024}


def pack(root: Path) -> dict[str, float]:
    """First opening of a catalogue."""
    start = time.perf_counter()
    WebShopEnv(root, cache_dir=root / "cache", nouns="words", test_goals=100)
    files = [path for path in (root / "cache").rglob("*") if path.is_file()]
    return {
        "cold_s": time.perf_counter() - start,
        "pack_peak_mib": memory()["peak_mib"],
        "cache_mib": sum(path.stat().st_size for path in files) / MIB,
    }


def play(root: Path, seconds: float) -> dict[str, float]:
    """Later opening, then as many resets and steps as fit into ``seconds`` each."""
    base = memory()["own_mib"]
    start = time.perf_counter()
    env = WebShopEnv(root, cache_dir=root / "cache", nouns="words", test_goals=100)
    warm = time.perf_counter() - start
    tasks, rng = env.tasks("train"), random.Random(0)
    resets = 0
    start = time.perf_counter()
    while (took_resets := time.perf_counter() - start) < seconds:
        env.reset(rng.choice(tasks), 0)
        resets += 1
    steps = 0
    start = time.perf_counter()
    while (took_steps := time.perf_counter() - start) < seconds:
        steps += walk(env, rng.choice(tasks), rng)
    held = memory()
    return {
        "warm_s": warm,
        "resets_per_s": resets / took_resets,
        "steps_per_s": steps / took_steps,
        "own_mib": held["own_mib"],
        "own_beyond_imports_mib": held["own_mib"] - base,
        "mapped_mib": held["mapped_mib"],
    }


def walk(env: WebShopEnv, task: str, rng: random.Random) -> int:
    """One episode of random clicks and of searches for words of the instruction; returns its steps."""
    start = env.reset(task, 0)
    words, offered, steps = start.task.split(), start.admissible_actions, 0
    while True:
        action = rng.choice(offered)
        if action.startswith("search") or action == "click[search]":
            action = f"search[{' '.join(rng.sample(words, min(6, len(words))))}]"
        result = env.step(action)
        offered = result.admissible_actions
        steps += 1
        if result.terminated or result.truncated:
            return steps


def measure(products: int, seed: int, seconds: float) -> dict[str, Any]:
    """All figures for one size."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        files = generate(root, products, seed)
        generated = time.perf_counter() - start
        with context.Pool(1) as pool:
            packed = pool.apply(pack, (root,))
        with context.Pool(1) as pool:
            played = pool.apply(play, (root, seconds))
        size = sum(path.stat().st_size for path in files) / MIB
        return {"products": products, "generate_s": generated, "files_mib": size, **packed, **played}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, nargs="*", default=[300, 10_000, 100_000], help="catalogue sizes")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for resets, and again for steps, per size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args(arguments)

    rows = [measure(products, args.seed, args.seconds) for products in args.products]
    columns = [name for name in rows[0] if name != "products"]
    write = sys.stdout.write
    write(f"{'':<24}" + "".join(f"{row['products']:>12,}" for row in rows) + "\n")
    for name in columns:
        write(f"{name:<24}" + "".join(f"{row[name]:>12.2f}" for row in rows) + "\n")
    for name in ("steps_per_s", "resets_per_s", "warm_s", "memory"):
        known = (UPSTREAM.get(row["products"], {}).get(name, "") for row in rows)
        write(f"{'original ' + name:<24}" + "".join(f"{value:>12}" for value in known) + "\n")
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        "arguments": {"products": args.products, "seconds": args.seconds, "seed": args.seed},
        "sizes": rows,
    }
    if len(rows) > 1:
        small, large = rows[-2:]
        share = (FULL_CATALOGUE - large["products"]) / (large["products"] - small["products"])
        names = ("cold_s", "warm_s", "cache_mib", "pack_peak_mib", "own_mib")
        report["extrapolated"] = {name: large[name] + share * (large[name] - small[name]) for name in names}
        write(f"straight line through the last two sizes to {FULL_CATALOGUE:,} products:\n")
        for name, value in report["extrapolated"].items():
            write(f"{name:<24}{value:>12.2f}\n")
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
