"""What comparing information gains per turn does to the decision whether to search on.

Every episode searches once, with a gain of N(0.5, 0.2); then it searches again with probability 1/2, with a gain of
N(m, 0.2), or answers; the outcome is 0. The policy gradient by the logit of searching again is p (1 - p) m. The script
estimates it with the advantages of each estimator on many groups of 8, and shows means with standard errors.
Magnitudes depend on what an estimator divides by, so signs are to be compared, and what happens at m = 0.

    python benchmarks/turn_bias.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from recording import machine

from openrlhf_gagpo import credit

GROUP = 8
FIRST, SPREAD = 0.5, 0.2
MEANS = (-0.3, 0.0, 0.3)
ESTIMATORS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "A2TGPO, turn_norm turn_group": ("a2tgpo", {}),
    "IGPO, ig_norm separate": ("igpo", {}),
    "IGPO, ig_norm joint": ("igpo", {"ig_norm": "joint"}),
    "A2TGPO, turn_norm unbiased": ("a2tgpo", {"turn_norm": "unbiased"}),
}
"""Row of the table -> estimator and its options."""


def play(mean: float, groups: int, rng: np.random.Generator) -> tuple[credit.StepBatch, np.ndarray]:
    """Return the steps of many groups, and per step the slope of the decision's log-probability, else 0."""
    on = rng.random(groups * GROUP) < 0.5
    lengths = np.where(on, 3, 2)
    traj = np.repeat(np.arange(len(on)), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    last = step == lengths[traj] - 1
    gain = np.where(step == 0, rng.normal(FIRST, SPREAD, len(step)), rng.normal(mean, SPREAD, len(step)))
    batch = credit.StepBatch.from_columns(
        group=(traj // GROUP).tolist(),
        traj=traj.tolist(),
        step=step.tolist(),
        state=step.tolist(),
        next_state=(step + 1).tolist(),
        reward=np.zeros(len(step)),
        terminated=last,
        truncated=np.zeros(len(step), dtype=bool),
        ig=np.where(last, np.nan, gain),
    )
    return batch, np.where(step == 1, np.where(on[traj], 0.5, -0.5), 0.0)


def measure(groups: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """Return estimator -> m -> mean of the gradient's estimate per episode, and its standard error over groups."""
    found: dict[str, dict[str, list[float]]] = {label: {} for label in ESTIMATORS}
    for mean in MEANS:
        batch, slope = play(mean, groups, np.random.default_rng([seed, int(mean * 10) + 10]))
        for label, (name, options) in ESTIMATORS.items():
            entry = credit.get(name)
            advantage = entry(batch, entry.options_cls(**options)).advantage
            of_group = np.add.reduceat(advantage * slope, _starts(batch)) / GROUP
            found[label][str(mean)] = [float(of_group.mean()), float(of_group.std(ddof=1) / np.sqrt(groups))]
    return found


def _starts(batch: credit.StepBatch) -> np.ndarray:
    """Return the first row of every group; rows were given in order."""
    group = np.asarray(batch.groups.label)[np.argsort(batch.order)]
    return np.flatnonzero(np.diff(group, prepend=-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the numbers")
    given = parser.parse_args()
    found = measure(given.groups, given.seed)
    lines = [
        ["estimate of the gradient", *(f"m = {mean}" for mean in MEANS)],
        ["---"] * (1 + len(MEANS)),
        ["true", *(f"{0.25 * mean:+.3f}" for mean in MEANS)],
        *([label, *(f"{value:+.3f} ({error:.3f})" for value, error in row.values())] for label, row in found.items()),
    ]
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    if given.out:
        record = {"machine": machine(), "groups": given.groups, "seed": given.seed, "estimates": found}
        given.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
