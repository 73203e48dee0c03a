"""Speed, memory and disk of WebShop on generated catalogues, beside recorded figures of the original program.

Each catalogue is measured in fresh processes: one packs it, others open the packed copy and play. Times are processor
time, and peaks are what the system noted of the process (VmHWM: its own pages and those of mapped files). Generated
entries have about 1.2 KB, official ones about 3.9 KB; ``--entry-bytes 0 3900`` measures both, the second by padding.
``--against`` lets another checkout of this project play by turns with this one, each from a copy it packed itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
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
HERE = Path(__file__).resolve().parents[1]
RATES = ("resets_per_s", "steps_per_s")
STRAIGHT = ("cold_s", "warm_s", "cache_mib", "pack_peak_mib", "own_mib")
"""What grows with the catalogue along a straight line, about. At small sizes the imports hide how opening peaks."""


class Prose:
    """Made-up words, as unequally frequent as those of a language."""

    def __init__(self, rng: random.Random, words: int = 50_000) -> None:
        syllables = [
            f"{start}{vowel}{end}" for start in "bcdfghklmnprstvw" for vowel in "aeiou" for end in ("", *"lnrst")
        ]
        self._words = [
            "".join(rng.choices(syllables, k=1 + (number > 200) + (number > 5000))) for number in range(words)
        ]
        self._weights = list(accumulate(1 / (rank + 3) for rank in range(words)))
        self._rng = rng

    def text(self, characters: float) -> str:
        """Sentences of about this length together."""
        words = self._rng.choices(self._words, cum_weights=self._weights, k=max(round(characters / 6), 1))
        ends = (self._rng.randint(8, 18) for _ in words)
        sentences, at = [], 0
        while at < len(words):
            end = at + next(ends)
            sentences.append(" ".join(words[at:end]).capitalize() + ".")
            at = end
        return " ".join(sentences)


def pad(items: Path, entry_bytes: int, seed: int) -> None:
    """Lengthen the entries of an items file to ``entry_bytes`` on average, where official entries are longer.

    About seven tenths of what is added are description and features, the rest are fields that play has no use for.
    """
    rng = random.Random(seed)
    prose = Prose(rng)
    padded = items.with_suffix(".padded")
    with items.open(encoding="utf-8") as source, padded.open("w", encoding="utf-8") as target:
        for line in source:
            # One entry per line, between the brackets of the list.
            if line.startswith("{"):
                entry = json.loads(line.rstrip(",\n"))
                _lengthen(entry, rng.uniform(0.5, 1.5) * (entry_bytes - len(line)), prose)
                line = json.dumps(entry, ensure_ascii=False) + ("," if line.endswith(",\n") else "") + "\n"
            target.write(line)
    padded.replace(items)


def _lengthen(entry: dict[str, Any], characters: float, prose: Prose) -> None:
    entry["full_description"] += f" {prose.text(0.35 * characters)}"
    bullets = entry["small_description"]
    bullets[:] = [f"{bullet} {prose.text(0.28 * characters / len(bullets))}" for bullet in bullets]
    entry["images"] = [f"https://images.example/{entry['asin']}/{number}.jpg" for number in range(4)]
    entry["product_information"] = {"Manufacturer": prose.text(30), "Item Weight": "1 pound", "Rank": prose.text(60)}
    entry["reviews"] = [{"stars": 4, "text": prose.text(0.16 * characters)}]


def memory() -> dict[str, float]:
    """Of this process, MiB: its own pages, pages of mapped files (shared between processes), the most of both."""
    values: dict[str, int] = {}
    for source in ("smaps_rollup", "status"):
        lines = Path(f"/proc/self/{source}").read_text(encoding="utf-8").splitlines()
        values.update(
            {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if " kB" in rest}
        )
    own = values["Anonymous"]
    return {"own_mib": own / 1024, "mapped_mib": (values["Rss"] - own) / 1024, "peak_mib": values["VmHWM"] / 1024}


def pack(root: Path, cache: Path) -> dict[str, float]:
    """First opening of a catalogue."""
    start = time.process_time()
    WebShopEnv(root, cache_dir=cache, nouns="words", test_goals=100)
    took = time.process_time() - start
    files = [path for path in cache.rglob("*") if path.is_file()]
    return {
        "cold_s": took,
        "pack_peak_mib": memory()["peak_mib"],
        "cache_mib": sum(path.stat().st_size for path in files) / MIB,
    }


def play(root: Path, cache: Path, seconds: float) -> dict[str, float]:
    """Later opening, then as many resets and steps as fit into ``seconds`` each."""
    base = memory()["own_mib"]
    start = time.process_time()
    env = WebShopEnv(root, cache_dir=cache, nouns="words", test_goals=100)
    warm, opened = time.process_time() - start, memory()
    tasks, rng = env.tasks("train"), random.Random(0)

    def reset() -> int:
        env.reset(rng.choice(tasks), 0)
        return 1

    rates = {
        "resets_per_s": rate(reset, seconds),
        "steps_per_s": rate(lambda: walk(env, rng.choice(tasks), rng), seconds),
    }
    held = memory()
    return {
        "warm_s": warm,
        "open_peak_mib": opened["peak_mib"],
        **rates,
        "own_mib": held["own_mib"],
        "own_beyond_imports_mib": held["own_mib"] - base,
        "mapped_mib": held["mapped_mib"],
        "play_peak_mib": held["peak_mib"],
    }


def rate(act: Callable[[], int], seconds: float) -> float:
    """Of what ``act`` counts, per second of processor time."""
    done = 0
    start = time.process_time()
    while (took := time.process_time() - start) < seconds:
        done += act()
    return done / took


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


def measure(products: int, entry_bytes: int, args: argparse.Namespace) -> dict[str, Any]:
    """All figures for one size."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        root = Path(folder)
        files = generate(root, products, args.seed)
        if entry_bytes:
            pad(files[0], entry_bytes, args.seed)
        row: dict[str, Any] = {
            "products": products,
            "entry_bytes": files[0].stat().st_size / products,
            "files_mib": sum(path.stat().st_size for path in files) / MIB,
            **alone(HERE, "pack", root, "this"),
        }
        checkouts = [(HERE, "this")]
        if args.against is not None:
            checkouts.append((args.against, "other"))
            row["other"] = alone(args.against, "pack", root, "other")
        played: list[list[dict[str, float]]] = [[] for _ in checkouts]
        for turn in range(args.repeats):
            # Whoever is first in a turn is second in the next.
            for place in sorted(range(len(checkouts)), reverse=turn % 2 == 1):
                played[place].append(alone(checkouts[place][0], "play", root, checkouts[place][1], args.seconds))
        row |= best(played[0])
        if args.against is not None:
            row["other"] |= best(played[1])
            row["ratios"] = {name: row[name] / row["other"][name] for name in row["other"]}
        return row


def alone(checkout: Path, what: str, root: Path, cache: str, seconds: float = 0.0) -> dict[str, float]:
    """Figures of ``pack`` or ``play`` with the code of ``checkout``, in a process of its own."""
    command = [sys.executable, __file__, "--alone", what, str(root), str(root / cache), str(seconds)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(checkout)}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def best(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The best of each figure: other work on the machine can only make one worse."""
    return {name: (max if name in RATES else min)(row[name] for row in rows) for name in rows[0]}


def extrapolate(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """A straight line through the last two sizes to the full catalogue."""
    small, large = rows[-2:]
    share = (FULL_CATALOGUE - large["products"]) / (large["products"] - small["products"])
    return {name: large[name] + share * (large[name] - small[name]) for name in STRAIGHT}


def lines(rows: Sequence[dict[str, Any]], full: dict[str, float]) -> Iterator[str]:
    """A table of the rows, one column each."""
    yield f"{'':<24}" + "".join(f"{row['products']:>12,}" for row in rows) + (f"{FULL_CATALOGUE:>14,}" if full else "")
    for name, value in rows[0].items():
        if isinstance(value, float):
            line = f"{name:<24}" + "".join(f"{row[name]:>12.2f}" for row in rows)
            yield line + (f"{full[name]:>14.2f} (straight line)" if name in full else "")
    for name in rows[0].get("ratios", {}):
        yield f"{'this / other ' + name:<36}" + "".join(f"{row['ratios'][name]:>12.2f}" for row in rows)
    for name in (*RATES, "warm_s", "memory"):
        known = [UPSTREAM.get(row["products"], {}).get(name, "") for row in rows]
        if any(known):
            yield f"{'original ' + name:<24}" + "".join(f"{value:>12}" for value in known)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--products", type=int, nargs="+", default=[300, 10_000, 100_000], help="catalogue sizes")
    parser.add_argument(
        "--entry-bytes", type=int, nargs="+", default=[0], help="mean to pad entries to, one after another; 0: as made"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="time for resets, and again for steps, per size")
    parser.add_argument("--repeats", type=int, default=1, help="playing processes per size; the best counts")
    parser.add_argument("--against", type=Path, help="another checkout of this project, to play by turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="folder for the catalogues; default the system's")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    write = sys.stdout.write
    if args.alone is not None:
        what, root, cache, seconds = args.alone
        figures = pack(Path(root), Path(cache)) if what == "pack" else play(Path(root), Path(cache), float(seconds))
        write(json.dumps(figures))
        return 0

    tables = []
    for entry_bytes in args.entry_bytes:
        rows = [measure(products, entry_bytes, args) for products in args.products]
        full = extrapolate(rows) if len(rows) > 1 else {}
        tables.append({"padded_to": entry_bytes, "sizes": rows, "extrapolated": full})
        write("\n".join([*lines(rows, full), "", ""]))
    report = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        "arguments": {name: getattr(args, name) for name in ("products", "seconds", "repeats", "seed")},
        "full_catalogue": FULL_CATALOGUE,
        "tables": tables,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
