"""Judge estimators in seconds: a softmax table plays the vault's small grids, and its success is computed exactly.

The policy has one row of logits per state of a layout (``own``), or one per situation that several states share, which
brings in the generalisation of a network in its simplest form (``shared``). It starts as a mixture of the expert and
random actions whose exact success is the regime's, then alternates: sample groups of episodes, let the project's own
estimator credit the steps, and take four clipped policy-gradient steps in which a visit with advantage 1 moves a logit
by the learning rate. Success over all layouts follows by dynamic programming, without any sampling.

Every estimator gets the rate of a grid with the best end on tuning seeds, which the reported seeds do not include.
Estimators that need a column of a model are left out. ``CANDIDATES`` are ideas of this file, not estimators of the
package.

    python benchmarks/tabular.py --out benchmarks/results/tabular.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_envs.vault import env as vault
from openrlhf_gagpo import credit
from openrlhf_gagpo.credit import CreditResult, StepBatch
from openrlhf_gagpo.credit.scores import episode_scores, group_statistics
from openrlhf_gagpo.credit.sets import Sets
from openrlhf_gagpo.credit.statistics import standardised, statistics_of
from openrlhf_gagpo.stats import mean, mean_interval, paired_test

ACTIONS = (*(f"go {way}" for way in vault.MOVES), "take red key", "take green key", "open chest", "take gem", "put gem")
GROUP_SIZE, TASKS, MINI_BATCHES, CLIP = 8, 8, 4, 0.2
RATES = (0.03, 0.1, 0.3, 1.0)
TUNING_SEEDS = (1000, 1001)
REFERENCE = "gagpo"
MARKS = (0, 8, 16, 24)
"""Iterations after which success is reported; the last one ends the run."""

Floats, Ints = NDArray[np.float64], NDArray[np.int64]
Compute = Callable[[StepBatch], CreditResult]


@dataclass(frozen=True)
class Regime:
    """What makes learning easy or hard."""

    limit: int
    start: float
    """Exact success at the start."""
    keys: str = "state"
    """What a state key holds: the ``state``, the ``history`` so far, or nothing shared (``distinct``)."""


REGIMES = {
    "slack": Regime(30, 0.17),
    "no slack": Regime(14, 0.34),
    "history keys": Regime(30, 0.17, "history"),
    "distinct keys": Regime(30, 0.17, "distinct"),
}


@dataclass(frozen=True)
class World:
    """L layouts with at most S states each, as tables over ``ACTIONS``."""

    following: Ints
    """(L, S, A) next state."""
    wins: NDArray[np.bool_]
    """(L, S, A) whether the action ends the episode with success."""
    row: Ints
    """(L, S) row of the policy's table."""
    cloned: tuple[Floats, Floats]
    """Per row of the table, the action distribution of the expert and that of a random player."""


def build(layouts: Sequence[vault.Layout], shared: bool) -> World:
    """Enumerate the reachable states of every layout."""
    env = vault.VaultEnv(max_steps=30)
    found = [_explore(env, layout) for layout in layouts]
    size = max(len(states) for states in found)
    following = np.zeros((len(found), size, len(ACTIONS)), dtype=np.int64)
    wins = np.zeros(following.shape, dtype=bool)
    row = np.zeros((len(found), size), dtype=np.int64)
    rows: dict[Any, int] = {}
    expert: list[Floats] = []
    random: list[Floats] = []
    count: list[int] = []
    for layout, states in enumerate(found):
        number = {_key(state): index for index, state in enumerate(states)}
        for index, state in enumerate(states):
            key = _situation(state) if shared else (layout, index)
            row[layout, index] = rows.setdefault(key, len(rows))
            if row[layout, index] == len(count):
                expert.append(np.zeros(len(ACTIONS)))
                random.append(np.zeros(len(ACTIONS)))
                count.append(0)
            possible = env._admissible(state)
            at = row[layout, index]
            count[at] += 1
            target, act = vault._plan(state)[0]
            best = act if target == state.agent else f"go {vault._direction(state.agent, target)}"
            expert[at][ACTIONS.index(best)] += 1
            random[at][[ACTIONS.index(action) for action in possible]] += 1 / len(possible)
            for action, name in enumerate(ACTIONS):
                after = _after(state, name, name in possible)
                wins[layout, index, action] = after.gem_placed
                following[layout, index, action] = index if after.gem_placed else number[_key(after)]
    total = np.array(count)[:, None]
    return World(following, wins, row, (np.array(expert) / total, np.array(random) / total))


def _key(state: vault.State) -> tuple[object, ...]:
    return state.agent, frozenset(state.held_keys), state.chest_open, state.gem_held


def _situation(state: vault.State) -> tuple[object, ...]:
    """Return what a player sees without distances: the direction of each thing, and what is held and open."""
    things = [*state.layout.keys, state.layout.chest, state.layout.altar]
    ways = [tuple(np.sign(np.subtract(thing, state.agent)).tolist()) for thing in things]
    held = [index in state.held_keys for index in range(len(state.layout.keys))]
    return *(None if gone else way for way, gone in zip(ways, [*held, False, False], strict=True)), *_key(state)[2:]


def _after(state: vault.State, action: str, possible: bool) -> vault.State:
    return vault._applied(state, action) if possible else state


def _explore(env: vault.VaultEnv, layout: vault.Layout) -> list[vault.State]:
    states = [vault.State(layout, layout.start)]
    seen = {_key(states[0])}
    for state in states:
        for action in env._admissible(state):
            after = _after(state, action, True)
            if not after.gem_placed and _key(after) not in seen:
                seen.add(_key(after))
                states.append(after)
    return states


def softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def success(world: World, logits: Floats, limit: int) -> float:
    """Compute the mean probability over layouts of reaching success within ``limit`` steps."""
    policy = softmax(logits)[world.row]
    value = np.zeros(world.row.shape)
    layouts = np.arange(len(value))[:, None, None]
    for _ in range(limit):
        value = (policy * np.where(world.wins, 1.0, value[layouts, world.following])).sum(axis=-1)
    return float(value[:, 0].mean())


def start_logits(world: World, regime: Regime) -> Floats:
    """Find the mixture of expert and random player with the regime's success, by bisection."""
    expert, random = world.cloned
    low, high = 0.0, 1.0
    for _ in range(30):
        noise = (low + high) / 2
        logits = np.log(0.98 * ((1 - noise) * expert + noise * random) + 0.02 / len(ACTIONS))
        low, high = (noise, high) if success(world, logits, regime.limit) > regime.start else (low, noise)
    return logits


def play(
    world: World, logits: Floats, layouts: Ints, regime: Regime, rng: np.random.Generator
) -> tuple[StepBatch, Ints, Ints]:
    """Play a group of episodes of each layout; also return each step's row of the table and its action."""
    policy = softmax(logits).cumsum(axis=1)
    episode = np.arange(len(layouts) * GROUP_SIZE)
    layout = np.repeat(layouts, GROUP_SIZE)
    state, key = np.zeros_like(episode), np.repeat(np.arange(len(layouts)), GROUP_SIZE)
    columns: list[list[NDArray[Any]]] = []
    for step in range(regime.limit):
        row = world.row[layout, state]
        action = (policy[row] < rng.random(len(row))[:, None]).sum(axis=1).clip(max=len(ACTIONS) - 1)
        won = world.wins[layout, state, action]
        after = world.following[layout, state, action]
        if regime.keys == "history":
            with np.errstate(over="ignore"):
                after_key = (key * 1_000_003 + after * len(ACTIONS) + action + 1) * 2_654_435_761
        elif regime.keys == "distinct":
            after_key = episode * 1000 + step + 1_000_000
        else:
            after_key = after
        cut = ~won & (step == regime.limit - 1)
        here = key if regime.keys != "distinct" or step else episode
        columns.append([episode, np.full_like(episode, step), here, after_key, won, cut, action, row])
        on = ~won
        episode, layout, state, key = episode[on], layout[on], after[on], after_key[on]
        if not len(episode):
            break
    episode, step, here, there, won, cut, action, row = (np.concatenate(part) for part in zip(*columns, strict=True))
    if regime.keys == "state":
        here = np.where(step == 0, 0, here)
    batch = StepBatch.from_columns(
        group=episode // GROUP_SIZE, traj=episode, step=step, state=here, next_state=there,
        reward=won.astype(float), terminated=won, truncated=cut, action=action,
    )  # fmt: skip
    return batch, row, action


def improve(
    logits: Floats, row: Ints, action: Ints, credited: CreditResult, rate: float, rng: np.random.Generator
) -> Floats:
    """Take clipped policy-gradient steps over the kept steps."""
    old = softmax(logits)[row, action]
    for part in np.array_split(rng.permutation(np.flatnonzero(credited.keep)), MINI_BATCHES):
        policy = softmax(logits)
        ratio = policy[row[part], action[part]] / old[part]
        advantage = credited.advantage[part]
        inside = np.where(advantage > 0, ratio < 1 + CLIP, ratio > 1 - CLIP)
        weight = advantage * ratio * inside
        change = np.zeros_like(logits)
        np.add.at(change, (row[part], action[part]), weight)
        total = np.bincount(row[part], weight, minlength=len(logits))
        logits = logits + rate * (change - total[:, None] * policy)
    return logits


@lru_cache(maxsize=64)
def beginning(regime: Regime, seed: int, shared: bool, layouts: int) -> tuple[World, Floats]:
    """Return the layouts of a seed and the policy to start from."""
    pool = vault._generate(3, 2, regime.limit, "train", 256)
    chosen = np.random.default_rng([seed, 0]).choice(len(pool), layouts, replace=False)
    world = build([pool[index] for index in chosen], shared)
    return world, start_logits(world, regime)


def train(regime: Regime, compute: Compute, rate: float, seed: int, *, shared: bool, layouts: int) -> list[float]:
    """Return exact success after each of ``MARKS`` iterations."""
    rng = np.random.default_rng([seed, 1])
    world, logits = beginning(regime, seed, shared, layouts)
    reached = []
    for iteration in range(MARKS[-1] + 1):
        if iteration in MARKS:
            reached.append(success(world, logits, regime.limit))
        batch, row, action = play(world, logits, rng.choice(layouts, TASKS, replace=False), regime, rng)
        logits = improve(logits, row, action, compute(batch), rate, rng)
    return reached


def registered(name: str, **options: object) -> Compute:
    """Return an estimator of the package with groups without reward left out, as in the vault's recipe."""
    estimator = credit.get(name)
    chosen = estimator.options_cls(**{"drop_reward_free_groups": True, "invalid_penalty": 0.0, **options})
    return lambda batch: estimator(batch, chosen)


def shared_steps(everywhere: bool) -> Compute:
    """Return GAGPO normalised over shared states, with the episode's advantage in lone ones or at all steps.

    The latter is the study's candidate, results/study/shared_steps.py.
    """

    def compute(batch: StepBatch) -> CreditResult:
        options = credit.get("gagpo").options_cls(drop_reward_free_groups=True, normalize="none")
        raw = credit.get("gagpo").compute(batch, options).advantage[batch.order]
        shared = batch.states.expand(batch.states.count) > 1
        inside = Sets.of_labels(batch.groups.label[shared], len(batch.groups.count))
        step = np.where(shared, standardised(raw, batch.groups, statistics_of(raw[shared], inside)), 0.0)
        scores = episode_scores(batch, options)
        episode = standardised(scores, batch.groups, group_statistics(batch, scores, options))
        return CreditResult.of(batch, options, advantage=step + np.where(shared & (not everywhere), 0.0, episode))

    return compute


def shrunk(strength: float) -> Compute:
    """Return GAGPO whose V(s) counts the group's mean return of the step number as ``strength`` further visits."""

    def compute(batch: StepBatch) -> CreditResult:
        options = credit.get("gagpo").options_cls(drop_reward_free_groups=True)
        returns = batch.trajectories.backward_sum(batch.reward, options.gamma)
        longest = int(batch.step.max()) + 1
        number = batch.groups.label * longest + batch.step
        count = np.bincount(number)
        prior = (np.bincount(number, returns) / np.maximum(count, 1))[number]
        states = batch.states
        value = states.expand(states.sum(returns) + strength * states.mean(prior)) / states.expand(
            states.count + strength
        )
        residual = batch.reward + options.gamma * batch.trajectories.following(value) - value
        raw = batch.trajectories.backward_sum(residual, options.gamma * options.lambd)
        advantage = standardised(raw, batch.groups, statistics_of(raw, batch.groups))
        return CreditResult.of(batch, options, advantage=advantage, value=value)

    return compute


METHODS: dict[str, Compute] = {name: registered(name) for name in credit.names() if not credit.get(name).needs}
"""Every estimator that needs no model, with its own defaults."""
VARIANTS: dict[str, Compute] = {
    "gagpo, singleton passthrough": registered("gagpo", singleton="passthrough"),
    "gagpo, value bellman": registered("gagpo", value="bellman"),
    "gagpo, broadcast_coef 1": registered("gagpo", broadcast_coef=1.0),
    "gagpo, lambd 1": registered("gagpo", lambd=1.0),
    "gagpo, normalize none": registered("gagpo", normalize="none"),
    "gagpo, gamma 1": registered("gagpo", gamma=1.0),
    "hgpo, hgpo_base": registered("hgpo", hgpo_base=True),
}
"""Options that might help where states are not shared."""
CANDIDATES: dict[str, Compute] = {
    "idea: episode advantage in lone states": shared_steps(False),
    "idea: shared states alone, episode everywhere": shared_steps(True),
    "idea: values shrunk to the step's mean, 1 visit": shrunk(1.0),
    "idea: values shrunk to the step's mean, 4 visits": shrunk(4.0),
}


def measure(regime: Regime, compute: Compute, seeds: Sequence[int], **world: Any) -> dict[str, Any]:
    """Choose the rate on the tuning seeds and return success over the others."""
    tuned = {rate: mean(train(regime, compute, rate, seed, **world)[-1] for seed in TUNING_SEEDS) for rate in RATES}
    rate = max(tuned, key=lambda known: tuned[known])
    runs = [train(regime, compute, rate, seed, **world) for seed in seeds]
    ends = [run[-1] for run in runs]
    marks = {str(mark): round(mean(run[index] for run in runs), 4) for index, mark in enumerate(MARKS)}
    found = mean_interval(ends)
    return {
        "rate": rate,
        "tuned": {str(known): round(value, 4) for known, value in tuned.items()},
        "after": marks,
        "end": [round(number, 4) for number in (found.mean, found.low, found.high)],
        "ends": [round(end, 4) for end in ends],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--layouts", type=int, default=32)
    parser.add_argument("--policies", nargs="+", choices=("own", "shared"), default=["own", "shared"])
    parser.add_argument("--regimes", nargs="+", choices=tuple(REGIMES), default=list(REGIMES))
    parser.add_argument("--methods", nargs="+", help="names of methods, variants and ideas (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file; cells that it already holds are kept")
    options = parser.parse_args(argv)
    methods = METHODS | VARIANTS | CANDIDATES
    chosen = options.methods or list(methods)
    report: dict[str, Any] = {"seeds": options.seeds, "layouts": options.layouts, "cells": {}}
    if options.out and options.out.exists():
        report = json.loads(options.out.read_text(encoding="utf-8"))
    for policy in options.policies:
        for regime in options.regimes:
            cells = report["cells"].setdefault(f"{policy}, {regime}", {})
            for name in chosen:
                if name not in cells:
                    started = time.process_time()
                    world = {"shared": policy == "shared", "layouts": options.layouts}
                    cells[name] = measure(REGIMES[regime], methods[name], range(options.seeds), **world)
                    cells[name]["cpu_s"] = round(time.process_time() - started, 1)
                    if options.out:
                        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            _print(f"{policy}, {regime}", {name: cells[name] for name in chosen})
    return 0


def _print(title: str, cells: dict[str, dict[str, Any]]) -> None:
    reference = REFERENCE if REFERENCE in cells else next(iter(cells))
    out = [f"\n{title} (success at {MARKS}, end with its interval over seeds, paired difference to {reference})"]
    for name, cell in cells.items():
        difference = paired_test(cell["ends"], cells[reference]["ends"]).difference
        marks = " ".join(f"{value:.2f}" for value in cell["after"].values())
        low, high = cell["end"][1:]
        out.append(
            f"{name:50} rate {cell['rate']:4} {marks} [{low:.2f}, {high:.2f}] "
            f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
        )
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    sys.exit(main())
