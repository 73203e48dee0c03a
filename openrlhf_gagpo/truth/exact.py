"""Exact values of a policy by dynamic programming over states and steps, in an environment that offers its rules."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent_envs.base import ExactModel, Move, View

__all__ = ["Answer", "ExactValues", "Explored", "Node", "Replies", "Rules", "Value", "explore"]


class Node(NamedTuple):
    """A state before the action number ``step`` (0-based)."""

    state: Hashable
    step: int


class Value(NamedTuple):
    """A number, and how far it may be from the true one."""

    value: float
    bound: float


@dataclass(frozen=True)
class Replies:
    """How a policy answers one prompt."""

    actions: Mapping[str, float]
    """Action text that the environment gets -> its probability."""
    missed: float
    """Probability of all responses that were not enumerated."""


Answer = Callable[[Sequence[tuple[Node, View]]], list[Replies]]
"""Returns how the policy answers what is shown at each node."""


@dataclass(frozen=True)
class _Branch:
    """What a policy does at a node: the chance of each move, and of using up a step without one."""

    moves: Mapping[Move, float]
    idle: float
    missed: float


@dataclass(frozen=True)
class Rules:
    """An environment's rules with its step limit."""

    model: ExactModel
    max_steps: int


@dataclass(frozen=True)
class ExactValues:
    """Values under one discount factor."""

    rules: Rules
    gamma: float
    at: Mapping[Node, Value]

    def state_value(self, node: Node) -> Value:
        """Return V; 0 from the step limit on."""
        return Value(0.0, 0.0) if node.step >= self.rules.max_steps else self.at[node]

    def action_value(self, node: Node, action: str) -> Value:
        """Return Q of an action text."""
        return self._after(node, self.rules.model.move(node.state, action))

    def advantage(self, node: Node, action: str) -> Value:
        """Return Q - V, with the steps left known to both; the bounds add up."""
        taken, here = self.action_value(node, action), self.state_value(node)
        return Value(taken.value - here.value, taken.bound + here.bound)

    def _after(self, node: Node, move: Move | None) -> Value:
        if move is None:
            move = Move(node.state)
        if move.terminated:
            return Value(move.reward, 0.0)
        following = self.state_value(Node(move.state, node.step + 1))
        return Value(move.reward + self.gamma * following.value, self.gamma * following.bound)


@dataclass(frozen=True)
class Explored:
    """Every node that can be reached, with what the policy does there."""

    rules: Rules
    branches: Mapping[Node, _Branch]

    @property
    def largest_miss(self) -> float:
        """Largest probability, over all nodes, of responses that were not enumerated."""
        return max((branch.missed for branch in self.branches.values()), default=0.0)

    def solve(self, gamma: float) -> ExactValues:
        """Compute V at every node, from the step limit backwards.

        A response that was not enumerated counts as an unrecognised action. It may be any action, whose value differs
        from that of none by at most the span ``D`` of possible returns, so with ``p`` the policy, ``m`` the probability
        that was not enumerated and ``B`` the bound, ``B(s, t) = sum_a p(a) gamma B(s_a, t + 1) + m D``.
        """
        low, high = self.rules.model.returns
        at: dict[Node, Value] = {}
        values = ExactValues(self.rules, gamma, at)
        for node in sorted(self.branches, key=lambda node: -node.step):
            branch = self.branches[node]
            idle = values._after(node, None)
            value, bound = (branch.idle + branch.missed) * idle.value, branch.idle * idle.bound
            for move, chance in branch.moves.items():
                after = values._after(node, move)
                value += chance * after.value
                bound += chance * after.bound
            at[node] = Value(value, min(bound + branch.missed * (high - low), high - low))
        return values


def explore(rules: Rules, roots: Iterable[Node], answer: Answer) -> Explored:
    """Find all nodes that can be reached from ``roots``, and ask once for the policy at each.

    Nodes are reached by the actions that the environment lists and by those that the policy takes.
    """
    layers: list[dict[Hashable, None]] = [{} for _ in range(rules.max_steps)]
    for node in roots:
        if node.step < rules.max_steps:
            layers[node.step][node.state] = None
    branches: dict[Node, _Branch] = {}
    # Most prompts do not show the step, so that a state has the same replies at many. They are kept with what follows
    # from them, because identities are unique only among living objects.
    known: dict[tuple[Hashable, int], tuple[Replies, _Branch, list[Hashable]]] = {}
    for step, layer in enumerate(layers):
        shown = [(Node(state, step), rules.model.view(state, step)) for state in layer]
        for (node, view), replies in zip(shown, answer(shown) if shown else [], strict=True):
            key = (node.state, id(replies))
            if key not in known:
                known[key] = (replies, *_branch(rules.model, node.state, view, replies))
            _, branches[node], reached = known[key]
            if step + 1 < rules.max_steps:
                layers[step + 1].update(dict.fromkeys(reached))
    return Explored(rules, branches)


def _branch(model: ExactModel, state: Hashable, view: View, replies: Replies) -> tuple[_Branch, list[Hashable]]:
    moves: dict[Move, float] = {}
    idle = 0.0
    for action in {**dict.fromkeys(view.admissible_actions, 0.0), **replies.actions}:
        chance = replies.actions.get(action, 0.0)
        move = model.move(state, action)
        if move is None:
            idle += chance
        else:
            moves[move] = moves.get(move, 0.0) + chance
    reached = [state, *(move.state for move in moves if not move.terminated)]
    return _Branch(moves, idle, replies.missed), reached
