"""Time of the advantage estimators against plain Python loops on the same random batch, and its growth with size.

Every reference below follows the definitions row by row with dictionaries; both sides must agree before a time counts.
It is timed twice: over Python lists, its fastest form, and over the NumPy columns that an estimator is given.
Run: ``python benchmarks/advantages.py --out advantages.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_gagpo import credit

EPSILON = 1e-6
ROUNDING = 1e-9

Columns = dict[str, list[Any]]


def make_columns(rows: int, *, seed: int, group_size: int, max_steps: int, states: int, key_length: int) -> Columns:
    """``rows`` steps of random walks over named states, in chronological order; every fifth episode is rewarded."""
    rng = random.Random(seed)
    names = [f"state {number} ".ljust(key_length, ".") for number in range(states)]
    columns: Columns = {
        name: []
        for name in (
            "group",
            "traj",
            "step",
            "state",
            "next_state",
            "reward",
            "terminated",
            "truncated",
            "invalid",
            "n_tokens",
        )
    }
    trajectory = 0
    left = rows
    while left:
        length = min(left, rng.randint(max(1, max_steps // 4), max_steps))
        won = rng.random() < 0.2
        path = [rng.choice(names) for _ in range(length + 1)]
        for step in range(length):
            last = step == length - 1
            columns["group"].append(f"group {trajectory // group_size}")
            columns["traj"].append(f"trajectory {trajectory}")
            columns["step"].append(step)
            columns["state"].append(path[step])
            columns["next_state"].append(path[step + 1])
            columns["reward"].append(10.0 if last and won else 0.0)
            columns["terminated"].append(last and won)
            columns["truncated"].append(last and not won)
            columns["invalid"].append(1.0 if rng.random() < 0.1 else 0.0)
            columns["n_tokens"].append(rng.randint(5, 60))
        trajectory += 1
        left -= length
    return columns


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased standard deviation; std 0 where there is no spread beyond rounding."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, std if std > ROUNDING * max(1.0, max(abs(value) for value in values)) else 0.0


def normalised(values: Sequence[float], keys: Sequence[Hashable], *, divide: bool, raw_if_alone: bool) -> list[float]:
    """Each value less the mean of the values with its key, over their standard deviation if ``divide``."""
    members: dict[Hashable, list[float]] = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        members[key].append(value)
    statistics = {key: mean_and_std(entries) for key, entries in members.items()}
    out = []
    for key, value in zip(keys, values, strict=True):
        mean, std = statistics[key]
        if len(members[key]) == 1 and raw_if_alone:
            out.append(value)
        elif std == 0.0:
            out.append(0.0)
        else:
            out.append((value - mean) / (std + EPSILON) if divide else value - mean)
    return out


def trajectories(columns: Columns) -> dict[str, list[int]]:
    """Row numbers per trajectory by rising step."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(columns["traj"]):
        rows[name].append(row)
    for members in rows.values():
        members.sort(key=lambda row: columns["step"][row])
    return rows


def discounted(columns: Columns, rewards: Sequence[float], gamma: float) -> list[float]:
    out = [0.0] * len(rewards)
    for members in trajectories(columns).values():
        following = 0.0
        for row in reversed(members):
            following = rewards[row] + gamma * following
            out[row] = following
    return out


def reference_gagpo(columns: Columns) -> list[float]:
    gamma, lambd = 0.95, 0.8
    rewards = [reward - 0.1 * bad for reward, bad in zip(columns["reward"], columns["invalid"], strict=True)]
    returns = discounted(columns, rewards, gamma)
    keys = list(zip(columns["group"], columns["state"], strict=True))
    visits: dict[tuple[str, str], list[float]] = defaultdict(list)
    for key, value in zip(keys, returns, strict=True):
        visits[key].append(value)
    values = {key: sum(entries) / len(entries) for key, entries in visits.items()}
    raw = [0.0] * len(rewards)
    for members in trajectories(columns).values():
        next_value = following = 0.0
        for row in reversed(members):
            value = values[keys[row]]
            following = rewards[row] + gamma * next_value - value + gamma * lambd * following
            next_value = value
            raw[row] = following
    return normalised(raw, columns["group"], divide=True, raw_if_alone=False)


def row_scores(columns: Columns) -> list[float]:
    totals: dict[str, float] = defaultdict(float)
    for name, reward in zip(columns["traj"], columns["reward"], strict=True):
        totals[name] += reward
    return [totals[name] - 0.1 * bad for name, bad in zip(columns["traj"], columns["invalid"], strict=True)]


def reference_gigpo(columns: Columns) -> list[float]:
    returns = discounted(columns, columns["reward"], 0.95)
    returns = [value - 0.1 * bad for value, bad in zip(returns, columns["invalid"], strict=True)]
    keys = list(zip(columns["group"], columns["state"], strict=True))
    step = normalised(returns, keys, divide=True, raw_if_alone=False)
    episode = normalised(row_scores(columns), columns["group"], divide=True, raw_if_alone=True)
    return [a + b for a, b in zip(episode, step, strict=True)]


def reference_grpo(columns: Columns) -> list[float]:
    return normalised(row_scores(columns), columns["group"], divide=True, raw_if_alone=True)


def reference_rloo(columns: Columns) -> list[float]:
    scores = row_scores(columns)
    totals: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for group, score in zip(columns["group"], scores, strict=True):
        totals[group] += score
        counts[group] += 1
    out = []
    for group, score in zip(columns["group"], scores, strict=True):
        others = counts[group] - 1
        out.append(score - (totals[group] - score) / others if others else score)
    return out


def reference_reinforce_baseline(columns: Columns) -> list[float]:
    centred = normalised(row_scores(columns), columns["group"], divide=False, raw_if_alone=True)
    tokens = columns["n_tokens"]
    total = sum(tokens)
    mean = sum(count * value for count, value in zip(tokens, centred, strict=True)) / total
    squares = sum(count * (value - mean) ** 2 for count, value in zip(tokens, centred, strict=True))
    scale = math.sqrt(squares / (total - 1) + 1e-8)
    return [(value - mean) / scale for value in centred]


REFERENCES: dict[str, Callable[[Columns], list[float]]] = {
    "gagpo": reference_gagpo,
    "gigpo": reference_gigpo,
    "grpo": reference_grpo,
    "rloo": reference_rloo,
    "reinforce_baseline": reference_reinforce_baseline,
}


def best_time(function: Callable[[], Any], repeats: int) -> float:
    """Shortest CPU time of several calls, seconds; CPU time because other processes may share the machine."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def options_of(name: str) -> credit.EstimatorOptions:
    options_cls = credit.get(name).options_cls
    return options_cls() if name == "gagpo" else options_cls(statistics="rows")


def compare(columns: Columns, repeats: int, reference_repeats: int) -> list[dict[str, float | str]]:
    """One line per estimator: seconds of both loops, of the estimator, and of batch construction."""
    construction = best_time(lambda: credit.StepBatch.from_columns(**columns), max(2, repeats // 4))
    batch = credit.StepBatch.from_columns(**columns)
    arrays = {name: getattr(batch, name) for name in columns}
    lines: list[dict[str, float | str]] = []
    for name, reference in REFERENCES.items():
        estimator, options = credit.get(name), options_of(name)
        fast, slow = estimator(batch, options).advantage, np.array(reference(columns))
        difference = float(np.abs(fast - slow).max())
        if not np.allclose(fast, slow, rtol=1e-9, atol=1e-7):
            raise SystemExit(f"{name} differs from its reference by {difference:g}; the times mean nothing")
        vector = best_time(lambda estimator=estimator, options=options: estimator(batch, options), repeats)
        loops = best_time(lambda reference=reference: reference(columns), reference_repeats)
        array_loops = best_time(lambda reference=reference: reference(arrays), reference_repeats)
        lines.append(
            {
                "estimator": name,
                "list_loops_s": loops,
                "array_loops_s": array_loops,
                "estimator_s": vector,
                "construction_s": construction,
                "ratio_lists": loops / vector,
                "ratio_arrays": array_loops / vector,
                "ratio_lists_with_construction": loops / (vector + construction),
                "largest_difference": difference,
            }
        )
    return lines


def growth(sizes: Sequence[int], repeats: int, make: Callable[[int], Columns]) -> list[dict[str, float]]:
    """Seconds per size: construction and each estimator."""
    lines = []
    for rows in sizes:
        columns = make(rows)
        batch = credit.StepBatch.from_columns(**columns)
        line = {
            "rows": float(rows),
            "construction_s": best_time(lambda columns=columns: credit.StepBatch.from_columns(**columns), 3),
        }
        for name in REFERENCES:
            estimator, options = credit.get(name), options_of(name)
            line[f"{name}_s"] = best_time(lambda e=estimator, o=options, b=batch: e(b, o), repeats)
        lines.append(line)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65536, help="steps in the comparison with plain loops")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1024, 4096, 16384, 65536, 262144], help="steps in the growth table"
    )
    parser.add_argument("--group-size", type=int, default=8, help="trajectories per group")
    parser.add_argument("--max-steps", type=int, default=50, help="longest trajectory")
    parser.add_argument("--states", type=int, default=100, help="distinct states of the environment")
    parser.add_argument("--key-length", type=int, default=80, help="characters of a state key")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls per estimator; the best one counts")
    parser.add_argument("--reference-repeats", type=int, default=2, help="timed calls per plain loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args(arguments)

    def make(rows: int) -> Columns:
        return make_columns(
            rows,
            seed=args.seed,
            group_size=args.group_size,
            max_steps=args.max_steps,
            states=args.states,
            key_length=args.key_length,
        )

    compared = compare(make(args.rows), args.repeats, args.reference_repeats)
    write = sys.stdout.write
    write(f"{args.rows} steps, milliseconds of CPU time; construction of the batch is shared by all estimators\n")
    heads = ("list loops", "array loops", "estimator", "ratio lists", "ratio arrays", "construction", "lists, with it")
    write(f"{'estimator':<20}" + "".join(f"{head:>16}" for head in heads) + "\n")
    for line in compared:
        times = [f"{line[key] * 1e3:.3f}" for key in ("list_loops_s", "array_loops_s", "estimator_s")]
        ratios = [f"{line['ratio_lists']:.0f}", f"{line['ratio_arrays']:.0f}"]
        built = [f"{line['construction_s'] * 1e3:.1f}", f"{line['ratio_lists_with_construction']:.1f}"]
        write(f"{line['estimator']:<20}" + "".join(f"{cell:>16}" for cell in (*times, *ratios, *built)) + "\n")
    grown = growth(args.sizes, args.repeats, make)
    columns = ["rows", "construction_s", *(f"{name}_s" for name in REFERENCES)]
    write("\ngrowth, milliseconds of CPU time\n" + "".join(f"{c.removesuffix('_s'):>20}" for c in columns) + "\n")
    for line in grown:
        write(f"{int(line['rows']):>20}" + "".join(f"{line[c] * 1e3:>20.3f}" for c in columns[1:]) + "\n")
    if args.out is not None:
        report = {
            "settings": {key: value for key, value in vars(args).items() if key != "out"},
            "python": platform.python_version(),
            "numpy": np.__version__,
            "comparison": compared,
            "growth": grown,
        }
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
