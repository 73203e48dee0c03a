"""Time the advantage estimators against plain Python loops on the same random batch, and their growth with its size.

The plain loop of an estimator is written as step-level credit is usually published: dictionaries of lists keyed by
trajectory, group or (group, state), filled row by row, then one pass over the rows that reads the statistics back. It
is written once below and timed over three forms of the same columns:

* ``columns``: the NumPy columns that the estimator gets, so entries are NumPy scalars. This is the plain loop.
* ``lists``: Python lists, its fastest form; the conversion of columns to lists is not timed.
* ``torch``: rewards and token counts as float64 tensors, so every number is a 0-d tensor, with the mean and deviation
  of a set taken by ``torch.stack``, as in trainers built on tensors. Left out without torch.

The loops check nothing and include the building of their dictionaries. The estimator is timed alone and together with
the construction of its batch from Python lists, which validates the rows and numbers the keys; that sum is compared
with the loop over lists. Results must agree to 1e-9 before a time counts. Times are medians of CPU time, since other
processes may share the machine; all ratios are within one run. Before timing, the process is brought into the state in
which freed memory is used again, as in training.

Run: ``python benchmarks/advantages.py --out advantages.json``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_gagpo import credit

EPSILON = 1e-6
ROUNDING = 1e-9
TOLERANCE = 1e-9

Columns = dict[str, Any]
"""Sequences of one entry per row: lists, arrays or tensors."""


def make_columns(rows: int, *, seed: int, group_size: int, max_steps: int, states: int, key_length: int) -> Columns:
    """Make ``rows`` steps of random walks over named states, in order of time; every fifth episode is rewarded."""
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
            columns["invalid"].append(rng.random() < 0.1)
            columns["n_tokens"].append(rng.randint(5, 60))
        trajectory += 1
        left -= length
    return columns


def mean_of(values: Sequence[float]) -> float:
    if isinstance(values[0], float):  # NumPy's float64 is one too; tensors are not
        return sum(values) / len(values)
    return torch_module().stack(values).mean()


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and unbiased standard deviation; std is 0 if there is no spread beyond rounding."""
    if len(values) == 1:
        return values[0], 0.0
    if isinstance(values[0], float):
        mean = mean_of(values)
        std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        largest = max(abs(value) for value in values)
    else:
        stacked = torch_module().stack(values)
        mean, std, largest = stacked.mean(), stacked.std(), stacked.abs().max()
    return mean, std if std > ROUNDING * max(1.0, largest) else 0.0


def torch_module() -> Any:
    """Import torch, only if its loops are requested; a dictionary lookup after the first call."""
    return sys.modules.get("torch") or importlib.import_module("torch")


def normalised(values: Sequence[float], keys: Sequence[Hashable], *, divide: bool, raw_if_alone: bool) -> list[float]:
    """Return each value minus the mean of the values with its key, over their standard deviation if ``divide``."""
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
    """Return the row numbers of each trajectory, in order of steps."""
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


def less_penalties(values: Sequence[float], invalid: Sequence[bool]) -> list[float]:
    return [value - 0.1 if bad else value for value, bad in zip(values, invalid, strict=True)]


def loop_gagpo(columns: Columns) -> list[float]:
    gamma, lambd = 0.95, 0.8
    rewards = less_penalties(columns["reward"], columns["invalid"])
    returns = discounted(columns, rewards, gamma)
    keys = list(zip(columns["group"], columns["state"], strict=True))
    visits: dict[tuple[str, str], list[float]] = defaultdict(list)
    for key, value in zip(keys, returns, strict=True):
        visits[key].append(value)
    values = {key: mean_of(entries) for key, entries in visits.items()}
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
    return less_penalties([totals[name] for name in columns["traj"]], columns["invalid"])


def loop_gigpo(columns: Columns) -> list[float]:
    returns = discounted(columns, columns["reward"], 0.95)
    returns = less_penalties(returns, columns["invalid"])
    keys = list(zip(columns["group"], columns["state"], strict=True))
    step = normalised(returns, keys, divide=True, raw_if_alone=False)
    episode = normalised(row_scores(columns), columns["group"], divide=True, raw_if_alone=True)
    return [a + b for a, b in zip(episode, step, strict=True)]


def loop_grpo(columns: Columns) -> list[float]:
    return normalised(row_scores(columns), columns["group"], divide=True, raw_if_alone=True)


def loop_rloo(columns: Columns) -> list[float]:
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


def loop_reinforce_baseline(columns: Columns) -> list[float]:
    centred = normalised(row_scores(columns), columns["group"], divide=False, raw_if_alone=True)
    tokens = columns["n_tokens"]
    total = sum(tokens)
    mean = sum(count * value for count, value in zip(tokens, centred, strict=True)) / total
    squares = sum(count * (value - mean) ** 2 for count, value in zip(tokens, centred, strict=True))
    scale = math.sqrt(squares / (total - 1) + 1e-8)
    return [(value - mean) / scale for value in centred]


LOOPS: dict[str, Callable[[Columns], list[float]]] = {
    "gagpo": loop_gagpo,
    "gigpo": loop_gigpo,
    "grpo": loop_grpo,
    "rloo": loop_rloo,
    "reinforce_baseline": loop_reinforce_baseline,
}


def cpu_time(function: Callable[[], Any], repeats: int) -> float:
    """Return the median CPU time of several calls, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def keep_freed_memory() -> None:
    """Free one large block, after which the C library reuses freed memory instead of requesting every page again.

    A training process is in this state after its first large array; a process with only this benchmark's small arrays
    would time page faults.
    """
    np.ones(4_000_000)


def options_of(name: str) -> credit.EstimatorOptions:
    options_cls = credit.get(name).options_cls
    return options_cls() if name == "gagpo" else options_cls(statistics="rows")


def forms_of(columns: Columns, with_torch: bool) -> dict[str, Columns]:
    """Return the same rows in every form over which the loops are timed."""
    arrays = {
        name: np.array(column, dtype=np.object_ if isinstance(column[0], str) else None)
        for name, column in columns.items()
    }
    forms = {"columns": arrays, "lists": columns}
    if with_torch:
        torch = torch_module()
        torch.set_num_threads(1)
        forms["torch"] = arrays | {
            name: torch.tensor(arrays[name], dtype=torch.float64) for name in ("reward", "n_tokens")
        }
    return forms


def compare(columns: Columns, repeats: int, loop_repeats: int, with_torch: bool) -> list[dict[str, float | str]]:
    """Return one line per estimator and one for all of them: seconds of each loop, of the estimator, of construction.

    Raises ``SystemExit`` if an estimator and its loop disagree.
    """
    construction = cpu_time(lambda: credit.StepBatch.from_columns(**columns), max(3, repeats // 5))
    batch = credit.StepBatch.from_columns(**columns)
    forms = forms_of(columns, with_torch)
    lines: list[dict[str, float | str]] = []
    for name, loop in LOOPS.items():
        estimator, options = credit.get(name), options_of(name)
        fast = estimator(batch, options).advantage
        line: dict[str, float | str] = {
            "estimator": name,
            "estimator_s": cpu_time(lambda estimator=estimator, options=options: estimator(batch, options), repeats),
            "construction_s": construction,
            "largest_difference": 0.0,
        }
        for form, entries in forms.items():
            slow = np.array([float(value) for value in loop(entries)])
            difference = float(np.abs(fast - slow).max())
            if not np.allclose(fast, slow, rtol=TOLERANCE, atol=TOLERANCE):
                raise SystemExit(f"{name} differs from its loop over {form} by {difference:g}; its times mean nothing")
            line["largest_difference"] = max(line["largest_difference"], difference)
            calls = 1 if form == "torch" else loop_repeats
            line[f"{form}_s"] = cpu_time(lambda loop=loop, entries=entries: loop(entries), calls)
        lines.append(line)
    total: dict[str, float | str] = {"estimator": "all", "construction_s": construction}
    for key in ("estimator_s", *(f"{form}_s" for form in forms)):
        total[key] = sum(line[key] for line in lines)
    total["largest_difference"] = max(line["largest_difference"] for line in lines)
    for line in (*lines, total):
        for form in forms:
            line[f"{form}_ratio"] = line[f"{form}_s"] / line["estimator_s"]
        line["constructed_ratio"] = line["lists_s"] / (line["estimator_s"] + construction)
    return [*lines, total]


def growth(sizes: Sequence[int], repeats: int, make: Callable[[int], Columns]) -> list[dict[str, float]]:
    """Return the seconds of construction and of each estimator per size."""
    lines = []
    for rows in sizes:
        columns = make(rows)
        batch = credit.StepBatch.from_columns(**columns)
        line = {
            "rows": float(rows),
            "construction_s": cpu_time(lambda columns=columns: credit.StepBatch.from_columns(**columns), 3),
        }
        for name in LOOPS:
            estimator, options = credit.get(name), options_of(name)
            line[f"{name}_s"] = cpu_time(lambda e=estimator, o=options, b=batch: e(b, o), repeats)
        lines.append(line)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65536, help="steps in the comparison with plain loops")
    sizes = [4**power for power in range(5, 11)]
    parser.add_argument("--sizes", type=int, nargs="*", default=sizes, help="steps in the growth table")
    parser.add_argument("--group-size", type=int, default=8, help="trajectories per group")
    parser.add_argument("--max-steps", type=int, default=50, help="longest trajectory")
    parser.add_argument("--states", type=int, default=100, help="distinct states of the environment")
    parser.add_argument("--key-length", type=int, default=80, help="characters of a state key")
    parser.add_argument("--repeats", type=int, default=41, help="timed calls per estimator; the median counts")
    parser.add_argument("--loop-repeats", type=int, default=5, help="timed calls per loop; one for tensors")
    parser.add_argument("--no-torch", action="store_true", help="leave out the loops over tensors")
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

    keep_freed_memory()
    with_torch = not args.no_torch and find_spec("torch") is not None
    compared = compare(make(args.rows), args.repeats, args.loop_repeats, with_torch)
    forms = ["columns", "lists", "torch"] if with_torch else ["columns", "lists"]
    write = sys.stdout.write
    write(f"{args.rows} steps, milliseconds of CPU time; constructing the batch takes ")
    write(f"{compared[0]['construction_s'] * 1e3:.1f} and serves all estimators\n")
    heads = ["estimator", *(f"loop {form}" for form in forms), *(f"x {form}" for form in forms), "x constructed"]
    write(f"{'':<20}" + "".join(f"{head:>15}" for head in heads) + "\n")
    for line in compared:
        times = [f"{line[key] * 1e3:.3f}" for key in ("estimator_s", *(f"{form}_s" for form in forms))]
        ratios = [f"{line[f'{form}_ratio']:.0f}" for form in forms] + [f"{line['constructed_ratio']:.1f}"]
        write(f"{line['estimator']:<20}" + "".join(f"{cell:>15}" for cell in (*times, *ratios)) + "\n")
    grown = growth(args.sizes, args.repeats, make)
    columns = ["rows", "construction_s", *(f"{name}_s" for name in LOOPS)]
    write("\ngrowth, milliseconds of CPU time\n" + "".join(f"{c.removesuffix('_s'):>20}" for c in columns) + "\n")
    for line in grown:
        write(f"{int(line['rows']):>20}" + "".join(f"{line[c] * 1e3:>20.3f}" for c in columns[1:]) + "\n")
    if args.out is not None:
        report = {
            "settings": {key: value for key, value in vars(args).items() if key != "out"},
            "machine": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "torch": torch_module().__version__ if with_torch else None,
                "system": platform.system(),
                "architecture": platform.machine(),
                "cpu_count": os.cpu_count(),
            },
            "comparison": compared,
            "growth": grown,
        }
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
