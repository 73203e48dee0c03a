"""What the ALFWorld scripts share: the stock environment, how its results are compared with ours, and a random walk."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld import EnvInfos
from textworld.envs.pddl import PddlEnv

from agent_envs.base import Reset, StepResult

__all__ = ["SUCCESS_REWARD", "Stock", "difference", "walk"]

SUCCESS_REWARD = 10.0


class Stock:
    """The stock environment as ALFWorld sets it up, without the planner's commands."""

    def __init__(self) -> None:
        self._env = AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True)), shuffle=False)
        self.load = self._env.load
        self.reset = self._env.reset
        self.step = self._env.step


def difference(ours: Reset | StepResult, state: Any, reward: float = 0.0, done: bool = False) -> str:
    """What our result and the stock environment's differ in; "" when they show the same."""
    offered = tuple(command for command in state["admissible_commands"] if command != "help")
    pairs: dict[str, tuple[object, object]] = {
        "observation": (ours.observation, state["feedback"]),
        "commands": (ours.admissible_actions, offered),
    }
    if isinstance(ours, StepResult):
        pairs["reward"] = (ours.reward, SUCCESS_REWARD * reward)
        pairs["end"] = (ours.terminated, done)
        pairs["won"] = (ours.success, state["won"])
    return "; ".join(f"{name}: {mine!r} against {theirs!r}" for name, (mine, theirs) in pairs.items() if mine != theirs)


def walk(rng: random.Random, offered: Sequence[str]) -> str:
    """A random command; more often one that does something than one that only moves, and now and then nonsense."""
    acts = [command for command in offered if not command.startswith("go to")]
    return rng.choice(
        [rng.choice(offered), rng.choice(acts), rng.choice(acts), rng.choice(("help", "sing", offered[0]))]
    )
