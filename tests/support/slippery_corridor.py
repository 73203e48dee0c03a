"""A gymnasium environment: a corridor with a slippery floor."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium import spaces

__all__ = ["Corridor"]


class Corridor(gymnasium.Env[int, int]):
    """Reach the door at the end. Where it starts is drawn, and so is whether a step ahead slips."""

    def __init__(self, length: int = 6, slips: float = 0.0) -> None:
        self.observation_space = spaces.Discrete(length + 1)
        self.action_space = spaces.Discrete(2)
        self.length = length
        self.slips = slips
        self.place = 0
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(self.length // 2))
        return self.place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if self.np_random.random() >= self.slips:
            self.place += 1 if action else -1
        self.place = max(self.place, 0)
        there = self.place >= self.length
        return self.place, float(there), there, False, {}

    def close(self) -> None:
        self.closed = True
