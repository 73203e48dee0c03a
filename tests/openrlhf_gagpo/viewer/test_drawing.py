"""Curves, scales and the graph of a group."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.viewer.curves import RunRows, panels
from openrlhf_gagpo.viewer.graph import GroupGraph
from openrlhf_gagpo.viewer.render import level, number, scale_of, signed
from openrlhf_gagpo.viewer.scale import Scale
from openrlhf_gagpo.viewer.turns import turns
from support.report_runs import episode


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 1.0], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([-1.0, 1.0], ["\N{MINUS SIGN}1.0", "\N{MINUS SIGN}0.5", "0.0", "0.5", "1.0"]),
        ([0.0, 100_000.0], ["0", "20k", "40k", "60k", "80k", "100k"]),
        ([3.0], ["2", "3", "4"]),
        ([math.nan], ["\N{MINUS SIGN}0.4", "\N{MINUS SIGN}0.2", "0.0", "0.2", "0.4"]),
    ],
)
def test_ticks_are_round_and_inside(values: list[float], labels: list[str]) -> None:
    scale = Scale.over(values, 0, 100, ticks=5)
    shown = [label for _, label in scale.ticks]
    assert all(0 <= at <= 100 for at, _ in scale.ticks)
    assert len(shown) >= 3
    if len(values) > 1:
        assert shown == labels
    assert Scale.over([0, 10], 10, 0, ticks=5)(10) == 0


def rows(metrics: list[dict[str, float | None]]) -> RunRows:
    return RunRows("r", 0, [{"iteration": i, **row} for i, row in enumerate(metrics, 1)], [])


def test_gaps_are_gaps_and_zeros_are_left_out() -> None:
    run = rows([{"rollout/a": 1.0, "rollout/z": 0.0}, {"rollout/a": 2.0}, {"rollout/a": None}, {"rollout/a": 3.0}])
    (panel,) = panels([run], "iteration", "rollout")
    assert panel.name == "rollout/a"
    (curve,) = panel.curves
    assert len(curve.lines) == 1
    assert len(curve.lines[0].split()) == 2
    assert [dot.text for dot in curve.dots] == ["r, iteration 1: 1", "r, iteration 2: 2", "r, iteration 4: 3"]


def test_axes_of_steps_and_time_add_up() -> None:
    run = rows([{"rollout/steps": 100, "time/iteration": 60.0}, {"rollout/steps": 50, "time/iteration": 30.0}])
    assert run.positions("steps") == {0: 0.0, 1: 100.0, 2: 150.0}
    assert run.positions("time") == {0: 0.0, 1: 1.0, 2: 1.5}
    evals = [{"iteration": 0, "time/eval": 6.0}, {"iteration": 1, "time/eval": 12.0}]
    assert replace(run, evals=evals, started_s=30.0).positions("time") == pytest.approx({0: 0.6, 1: 1.8, 2: 2.3})
    evaluated = RunRows(
        "r", 0, run.metrics, [{"iteration": 0, "eval/success": 0.5}, {"iteration": 2, "eval/success": 1}]
    )
    panel = next(p for p in panels([evaluated], "steps", "main") if p.name == "eval/success")
    assert [dot.text for dot in panel.curves[0].dots][1] == "r, iteration 2, 150 environment steps: 1"


def played(number: int, states: str, *, success: bool) -> PlayedEpisode:
    """An episode that visits the states of a word."""
    found = episode(number, success=success, steps=len(states) - 1)
    for step, here, there in zip(found.steps, states, states[1:], strict=False):
        step.state_key, step.next_state_key, step.observation = here, there, f"at {here}"
        step.action = f"to {there}"
    credit = [{"advantage": float(n), "return": 1.0} for n in range(len(found.steps))]
    return PlayedEpisode(number, found, credit)


def test_the_graph_of_a_group() -> None:
    graph = GroupGraph([played(0, "abcd", success=True), played(1, "abbad", success=False)])
    a, *_, d = graph.nodes
    assert [len(node.visits) for node in graph.nodes] == [3, 3, 1, 0]
    assert [node.layer for node in graph.nodes] == [0, 1, 2, 1]
    assert (d.solved, d.ended, d.text, a.text) == (1, 1, "d", "at a")
    counts = {(edge.source.state, edge.target.state): len(edge.visits) for edge in graph.edges}
    assert counts == {("a", "b"): 2, ("b", "c"): 1, ("c", "d"): 1, ("b", "b"): 1, ("b", "a"): 1, ("a", "d"): 1}
    assert {(e.source.state, e.target.state) for e in graph.edges if e.back} == {("b", "b"), ("b", "a"), ("c", "d")}
    assert a.mean_advantage == pytest.approx((0 + 0 + 3) / 3)
    assert [(taken.action, len(taken.visits)) for taken in a.actions] == [("to b", 2), ("to d", 1)]
    places = [(node.x, node.y) for node in graph.nodes]
    assert len(set(places)) == 4
    again = GroupGraph([played(0, "abcd", success=True), played(1, "abbad", success=False)])
    assert [edge.path for edge in again.edges] == [edge.path for edge in graph.edges]
    assert all(0 < node.x < graph.width and 0 < node.y < graph.height for node in graph.nodes)


def test_thinking_and_response_are_told_apart() -> None:
    item = played(0, "ab", success=True)
    step = item.episode.steps[0]
    graph = GroupGraph([item])
    for response, thinking, rest in [
        ("<think>hm</think><action>to b</action>", "hm", ""),
        ("hm</think>\nto b", "hm", ""),
        ("to b", "", ""),
        ("<think>never closed", "", "<think>never closed"),
        ("<think>x</think> well, <action>to b</action>", "x", "well, <action>to b</action>"),
    ]:
        step.response = response
        (turn,) = turns(item, graph, None)
        assert (turn.thinking, turn.rest) == (thinking, rest)


def test_colours_and_numbers() -> None:
    assert [level(v, 1.0) for v in (-1.0, -0.1, 0.0, 0.19, 0.21, 1.0)] == ["n5", "n1", "z", "p1", "p2", "p5"]
    assert (level(None, 1.0), level(math.nan, 1.0), level(0.0, 0.0)) == ("", "", "z")
    assert scale_of([None, -2.0, math.nan, 1.0]) == 2.0
    assert [signed(v) for v in (0.0, -0.004, 1.2, None)] == ["0", "\N{MINUS SIGN}0.004", "+1.20", ""]
    assert [number(v) for v in (3.0, -0.12345, None, math.nan)] == ["3", "\N{MINUS SIGN}0.123", "", ""]
