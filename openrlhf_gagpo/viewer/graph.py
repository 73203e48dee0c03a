"""The states that a group of episodes visited, as a graph with a fixed layout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.rollout.types import Step

__all__ = ["Edge", "GroupGraph", "Node", "Taken", "Visit", "mean"]

_COLUMN, _ROW, _MARGIN = 96.0, 46.0, 34.0
_SWEEPS = 6
_RADIUS, _MOST_RADIUS = 10.0, 18.0


@dataclass(frozen=True)
class Visit:
    """One step from a state."""

    played: PlayedEpisode
    step: Step
    credit: Mapping[str, float]


class _Visited:
    """Anything that has visits."""

    visits: list[Visit]

    @property
    def mean_return(self) -> float | None:
        """Mean of the recorded returns of the visits."""
        return mean([visit.credit.get("return") for visit in self.visits])

    @property
    def mean_advantage(self) -> float | None:
        """Mean of the recorded advantages of the visits."""
        return mean([visit.credit.get("advantage") for visit in self.visits])


@dataclass
class Taken(_Visited):
    """All visits of one state that took one action."""

    action: str
    visits: list[Visit] = field(default_factory=list)


@dataclass
class Node(_Visited):
    """One state of the group."""

    number: int
    """From 1, in order of first appearance."""
    state: str
    visits: list[Visit] = field(default_factory=list)
    """By episode, then step; none for a state that only ends episodes."""
    solved: int = 0
    """Episodes that were solved here."""
    ended: int = 0
    """Episodes that ended here in any other way."""
    layer: int = 0
    """Fewest steps from a first state."""
    x: float = 0.0
    y: float = 0.0

    @property
    def name(self) -> str:
        """Short name on the page."""
        return f"S{self.number}"

    @property
    def text(self) -> str:
        """The state in words: its observation, or its key for a state that was only reached."""
        return self.visits[0].step.observation if self.visits else self.state

    @property
    def radius(self) -> float:
        """Radius in the drawing, by the number of visits."""
        return min(_MOST_RADIUS, _RADIUS + 1.6 * math.sqrt(max(0, len(self.visits) - 1)))

    @property
    def actions(self) -> list[Taken]:
        """The actions taken here, the most frequent first."""
        found: dict[str, Taken] = {}
        for visit in self.visits:
            found.setdefault(visit.step.action, Taken(visit.step.action)).visits.append(visit)
        return sorted(found.values(), key=lambda taken: -len(taken.visits))


@dataclass
class Edge(_Visited):
    """All steps of the group from one state to another."""

    source: Node
    target: Node
    visits: list[Visit] = field(default_factory=list)

    @property
    def width(self) -> float:
        """Line width in the drawing."""
        return min(6.0, 0.8 + 0.6 * len(self.visits))

    @property
    def back(self) -> bool:
        """Whether it leads away from the direction of the layout."""
        return self.target.layer <= self.source.layer

    @property
    def title(self) -> str:
        """Its steps in words."""
        counts = Counter(visit.step.action for visit in self.visits)
        actions = ", ".join(f"{action} ({count})" for action, count in counts.most_common(4))
        return f"{self.source.name} to {self.target.name}: {actions}"

    @property
    def path(self) -> str:
        """Data of the SVG path, from the rim of one circle to that of the other."""
        a, b = self.source, self.target
        if a is b:
            r = a.radius
            x, y = a.x, a.y - r + 2
            return f"M{x - 5:.1f},{y:.1f} C{x - 18:.1f},{y - 24:.1f} {x + 18:.1f},{y - 24:.1f} {x + 5:.1f},{y:.1f}"
        if not self.back:
            bend = (b.x - a.x) / 2
            return (
                f"M{a.x + a.radius:.1f},{a.y:.1f} C{a.x + bend:.1f},{a.y:.1f} "
                f"{b.x - bend:.1f},{b.y:.1f} {b.x - b.radius - 5:.1f},{b.y:.1f}"
            )
        # Bows out beside the straight line, so that a way back does not hide the way there.
        dx, dy = b.x - a.x, b.y - a.y
        length = math.hypot(dx, dy)
        bow = 0.22 * length + 8
        mx, my = (a.x + b.x) / 2 - dy / length * bow, (a.y + b.y) / 2 + dx / length * bow
        sx, sy = _towards(a.x, a.y, mx, my, a.radius)
        tx, ty = _towards(b.x, b.y, mx, my, b.radius + 5)
        return f"M{sx:.1f},{sy:.1f} Q{mx:.1f},{my:.1f} {tx:.1f},{ty:.1f}"


class GroupGraph:
    """States and steps of a group. Equal episodes give equal numbers and an equal drawing."""

    def __init__(self, played: Sequence[PlayedEpisode]) -> None:
        self._by_state: dict[str, Node] = {}
        edges: dict[tuple[str, str], Edge] = {}
        starts: list[Node] = []
        for item in played:
            for step, credit in zip(item.episode.steps, item.credit, strict=True):
                visit = Visit(item, step, credit)
                source, target = self._node(step.state_key), self._node(step.next_state_key)
                source.visits.append(visit)
                key = (step.state_key, step.next_state_key)
                edges.setdefault(key, Edge(source, target)).visits.append(visit)
            if item.episode.steps:
                starts.append(self._node(item.episode.steps[0].state_key))
                last = self._node(item.episode.steps[-1].next_state_key)
                last.solved += item.episode.success
                last.ended += not item.episode.success
        self.nodes = list(self._by_state.values())
        self.edges = list(edges.values())
        self.width, self.height = self._lay_out(starts)

    def named(self, name: str) -> Node | None:
        """Return the node with the short name ``name``."""
        return next((node for node in self.nodes if node.name == name), None)

    def of_state(self, state: str) -> Node:
        """Return the node of a state that the group visited."""
        return self._by_state[state]

    def _node(self, state: str) -> Node:
        return self._by_state.setdefault(state, Node(len(self._by_state) + 1, state))

    def _lay_out(self, starts: Sequence[Node]) -> tuple[float, float]:
        """Give every node its place: columns by distance from the start, rows by the places of neighbours."""
        following: dict[int, list[Node]] = {}
        around: dict[int, list[Node]] = {}
        for edge in self.edges:
            following.setdefault(edge.source.number, []).append(edge.target)
            if edge.source is not edge.target:
                around.setdefault(edge.source.number, []).append(edge.target)
                around.setdefault(edge.target.number, []).append(edge.source)
        layers: list[list[Node]] = []
        seen: set[int] = set()
        reached = list({node.number: node for node in starts}.values())
        while reached:
            seen |= {node.number for node in reached}
            for node in reached:
                node.layer = len(layers)
            layers.append(reached)
            behind = {n.number: n for node in reached for n in following.get(node.number, ()) if n.number not in seen}
            reached = list(behind.values())
        tallest = max(map(len, layers), default=1)
        height = 2 * _MARGIN + (tallest - 1) * _ROW
        for layer in layers:
            _spread(layer, height)
        for sweep in range(_SWEEPS):
            for layer in layers if sweep % 2 == 0 else reversed(layers):
                wish = {node.number: _mean_y(around.get(node.number, ()), node.y) for node in layer}
                layer.sort(key=lambda node: (wish[node.number], node.number))
                _spread(layer, height)
        return 2 * _MARGIN + max(0, len(layers) - 1) * _COLUMN, height


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _spread(layer: Sequence[Node], height: float) -> None:
    for place, node in enumerate(layer):
        node.x = _MARGIN + node.layer * _COLUMN
        node.y = height / 2 + (place - (len(layer) - 1) / 2) * _ROW


def _mean_y(nodes: Sequence[Node], otherwise: float) -> float:
    return sum(node.y for node in nodes) / len(nodes) if nodes else otherwise


def _towards(x: float, y: float, to_x: float, to_y: float, distance: float) -> tuple[float, float]:
    length = math.hypot(to_x - x, to_y - y) or 1.0
    return x + (to_x - x) / length * distance, y + (to_y - y) / length * distance
