"""The graph-based estimators once more, as plain loops over the rows of a batch's columns."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

__all__ = ["crbc", "distances", "episode_term", "g2po", "gagpo_bellman", "graphgpo", "values_by_sweeps"]

Columns = dict[str, list[Any]]
PENALTY = 0.1


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def standardised(values: Sequence[float], keys: Sequence[Hashable]) -> list[float]:
    members: dict[Hashable, list[float]] = defaultdict(list)
    for value, key in zip(values, keys, strict=True):
        members[key].append(value)
    out = []
    for value, key in zip(values, keys, strict=True):
        entries = members[key]
        std = math.sqrt(sum((x - mean(entries)) ** 2 for x in entries) / max(1, len(entries) - 1))
        flat = std <= 1e-9 * max(1.0, abs(mean(entries)))
        out.append(0.0 if flat else (value - mean(entries)) / (std + 1e-6))
    return out


def states(columns: Columns) -> list[Hashable]:
    return list(zip(columns["group"], columns["state"], strict=True))


def scores(columns: Columns) -> list[float]:
    total: dict[str, float] = defaultdict(float)
    for name, reward in zip(columns["traj"], columns["reward"], strict=True):
        total[name] += reward
    return [total[name] for name in columns["traj"]]


def penalties(columns: Columns) -> list[float]:
    return [PENALTY * bad for bad in columns["invalid"]]


def next_rows(columns: Columns) -> list[int | None]:
    place = {key: row for row, key in enumerate(zip(columns["traj"], columns["step"], strict=True))}
    return [place.get((name, step + 1)) for name, step in zip(columns["traj"], columns["step"], strict=True)]


def episode_term(columns: Columns) -> list[float]:
    """Scores against all rows of the group, each less its own penalty; the score itself in a group of one row."""
    own = [score - cost for score, cost in zip(scores(columns), penalties(columns), strict=True)]
    out = standardised(own, columns["group"])
    return [own[row] if columns["group"].count(columns["group"][row]) == 1 else out[row] for row in range(len(out))]


def distances(columns: Columns, dead_end: bool = False) -> tuple[list[float], list[float]]:
    """Distances of each row's state and of the node behind it, by relaxing all edges until nothing changes."""
    goal, rows, score, following = "goal", range(len(columns["step"])), scores(columns), next_rows(columns)
    source, target = states(columns), list(zip(columns["group"], columns["next_state"], strict=True))
    for row in rows:
        if following[row] is None:
            if score[row] > 0:
                target[row] = (columns["group"][row], goal, goal)
            elif dead_end and columns["terminated"][row]:
                target[row] = (columns["group"][row], goal, columns["traj"][row])
    far = float("inf")
    distance: dict[Hashable, float] = defaultdict(lambda: far)
    for group in columns["group"]:
        distance[group, goal, goal] = 0
    for _ in rows:
        for row in rows:
            distance[source[row]] = min(distance[source[row]], distance[target[row]] + 1)

    def known(node: Any) -> float:
        if distance[node] < far:
            return distance[node]
        return 1 + max(d for other, d in distance.items() if other[0] == node[0] and d < far)  # type: ignore[index]

    return [known(node) for node in source], [known(node) for node in target]


def graphgpo(columns: Columns, omega: float, progress: bool, dead_end: bool) -> list[float]:
    here, there = distances(columns, dead_end)
    worth = [
        10 * omega ** (d - (e - 1 if progress else 0)) - cost
        for e, d, cost in zip(here, there, penalties(columns), strict=True)
    ]
    return standardised(worth, states(columns))


def g2po(columns: Columns, gamma: float) -> list[float]:
    lengths = {name: columns["traj"].count(name) for name in columns["traj"]}
    visits: dict[Hashable, list[float]] = defaultdict(list)
    for name, step, key, score in zip(columns["traj"], columns["step"], states(columns), scores(columns), strict=True):
        visits[key].append(gamma ** (lengths[name] - step) * score)
    value = [mean(visits[key]) for key in states(columns)]
    score = scores(columns)
    behind = [score[row] if after is None else value[after] for row, after in enumerate(next_rows(columns))]
    led_to = [v - cost for v, cost in zip(behind, penalties(columns), strict=True)]
    gain = [after - before for before, after in zip(value, behind, strict=True)]
    within, among = standardised(led_to, states(columns)), standardised(gain, columns["group"])
    return [a + b for a, b in zip(within, among, strict=True)]


def values_by_sweeps(
    columns: Columns, rewards: Sequence[float], end: Sequence[float], gamma: float
) -> tuple[list[float], list[float]]:
    """V of each row's state, and reward plus discounted V behind the row, whose mean over a state is V."""
    value: dict[Hashable, float] = dict.fromkeys(states(columns), 0.0)
    following, keys = next_rows(columns), states(columns)
    while True:
        led_to = [
            rewards[row] + gamma * (end[row] if after is None else value[keys[after]])
            for row, after in enumerate(following)
        ]
        visits: dict[Hashable, list[float]] = defaultdict(list)
        for key, entry in zip(keys, led_to, strict=True):
            visits[key].append(entry)
        change = max(abs(mean(entries) - value[key]) for key, entries in visits.items())
        value = {key: mean(entries) for key, entries in visits.items()}
        if change < 1e-13:
            return [value[key] for key in keys], led_to


def crbc(columns: Columns, gamma: float, edge: str, by_reward: bool) -> list[float]:
    unit = 10.0 if by_reward else 1.0
    shaped = [r - cost for r, cost in zip(columns["reward"], penalties(columns), strict=True)]
    rewards = shaped if by_reward else [0.0] * len(shaped)
    end = [float(score > 0 and not by_reward) for score in scores(columns)]
    value, led_to = values_by_sweeps(columns, rewards, end, gamma)
    taken: dict[Hashable, list[float]] = defaultdict(list)
    for key, done, entry in zip(states(columns), columns[edge], led_to, strict=True):
        taken[key, done].append(entry)
    gap = [mean(taken[key, done]) - v for key, done, v in zip(states(columns), columns[edge], value, strict=True)]
    squares: dict[Hashable, list[float]] = defaultdict(list)
    for key, x in zip(states(columns), gap, strict=True):
        squares[key].append(x * x)
    return [x / max(math.sqrt(mean(squares[key])), 0.1 * unit) for key, x in zip(states(columns), gap, strict=True)]


def gagpo_bellman(columns: Columns, gamma: float, lambd: float) -> list[float]:
    rewards = [r - cost for r, cost in zip(columns["reward"], penalties(columns), strict=True)]
    value, led_to = values_by_sweeps(columns, rewards, [0.0] * len(rewards), gamma)
    out = [after - before for before, after in zip(value, led_to, strict=True)]
    following = next_rows(columns)
    for row in sorted(range(len(out)), key=lambda row: -columns["step"][row]):
        after = following[row]
        out[row] += 0.0 if after is None else gamma * lambd * out[after]
    return out
