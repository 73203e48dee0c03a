"""What the figures of a report show and leave out, looked at before they become pictures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openrlhf_gagpo.report import panels as module
from openrlhf_gagpo.report.data import evaluations
from openrlhf_gagpo.report.panels import Curves, panels
from support.report_runs import eval_row, training_row

ROWS = [{"iteration": i, **training_row(i)} for i in range(1, 7)]
EVALS = [{"iteration": i, "split": "valid", **eval_row(3, 64)} for i in (0, 4)]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    drawn: list[Figure] = []

    def keep(figure: Figure) -> str:
        drawn.append(figure)
        return "data:"

    monkeypatch.setattr(module, "svg_uri", keep)
    return drawn


def by_title(figures: list[Figure], curves: Curves) -> dict[str, Axes]:
    found, _ = panels(curves)
    return {panel.title: figure.axes[0] for panel, figure in zip(found, figures, strict=True)}


def test_all_figures_over_iterations_have_one_axis(figures: list[Figure]) -> None:
    advantages = {"iteration 1": np.array([-1.0, 0.5, 2.0])}
    drawn = by_title(figures, Curves(ROWS[2:], EVALS, evaluations(EVALS), advantages))
    histogram = drawn.pop("Distribution of advantages")
    assert histogram.get_xlabel() == "advantage"
    assert {axes.get_xlim() for axes in drawn.values()} == {(-0.5, 6.5)}
    assert {axes.get_xlabel() for axes in drawn.values()} == {"iteration"}


def test_legends_stand_above_the_axes(figures: list[Figure]) -> None:
    drawn = by_title(figures, Curves(ROWS, EVALS, evaluations(EVALS)))
    assert all(axes.get_legend() is None for axes in drawn.values())
    figure = drawn["Success rate"].get_figure(root=True)
    figure.draw_without_rendering()
    below = figure.legends[0].get_window_extent().y0
    assert below >= drawn["Success rate"].get_window_extent().y1


def test_an_iteration_without_an_update_leaves_a_gap(figures: list[Figure]) -> None:
    rows = [{k: v for k, v in row.items() if row["iteration"] != 3 or "policy/" not in k} for row in ROWS]
    line = by_title(figures, Curves(rows, [], {}))["Entropy"].get_lines()[0]
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert list(np.isnan(line.get_ydata())) == [False, False, True, False, False, False]


def test_evaluations_are_joined_by_lines(figures: list[Figure]) -> None:
    lines = by_title(figures, Curves(ROWS, EVALS, evaluations(EVALS)))["Return"].get_lines()
    assert list(lines[1].get_xdata()) == [0, 4]


def test_what_was_zero_throughout_is_named_and_not_drawn(figures: list[Figure]) -> None:
    rows = [row | {"policy/clip_share": 0.0, "rollout/inadmissible_share": 0.0} for row in ROWS]
    found, zero = panels(Curves(rows, [], {}))
    assert zero == ["Clipped ratios"]
    titles = [panel.title for panel in found]
    assert "Clipped ratios" not in titles
    legend = figures[titles.index("Responses")].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["malformed", "step limit"]


def test_success_of_zero_is_drawn(figures: list[Figure]) -> None:
    found, zero = panels(Curves([{"iteration": 1, "rollout/success": 0.0}], [], {}))
    assert [panel.title for panel in found] == ["Success rate"]
    assert zero == []


def test_a_single_line_of_several_keeps_its_name(figures: list[Figure]) -> None:
    by_title(figures, Curves([{"iteration": 1, "credit/rows_dropped": 3}], [], {}))
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["dropped steps"]


def test_advantages_of_each_iteration_add_up_to_one(figures: list[Figure]) -> None:
    advantages = {"iteration 1": np.array([-1.0, 0.5, 2.0, np.nan]), "iteration 9": np.zeros(5)}
    axes = by_title(figures, Curves([], [], {}, advantages))["Distribution of advantages"]
    (stairs,) = axes.patches
    assert sum(stairs.get_data().values) == pytest.approx(1.0)


def test_state_groups_are_stacked_by_size(figures: list[Figure]) -> None:
    share = "credit/state_group_size_share/"
    rows = [{"iteration": i, f"{share}1": 0.25, f"{share}3_4": 0.5, f"{share}17_up": 0.25} for i in (1, 2)]
    axes = by_title(figures, Curves(rows, [], {}))["Steps by the size of their state group"]
    assert [patch.get_label() for patch in axes.patches] == ["1", "3 to 4", "17 and more"]
    assert list(axes.patches[-1].get_data().values) == [1.0, 1.0]


def test_throughput_follows_from_counts_and_seconds(figures: list[Figure]) -> None:
    row = {"iteration": 1, "rollout/steps": 100, "rollout/response_tokens": 4.0, "time/rollout": 2.0}
    row |= {"time/iteration": 5.0, "policy/tokens_trained": 300, "time/update": 0.0}
    drawn = by_title(figures, Curves([row], [], {}))
    steps = drawn["Environment steps per second"].get_lines()
    assert [line.get_ydata()[0] for line in steps] == [50.0, 20.0]
    tokens = drawn["Response tokens per second"].get_lines()
    assert [line.get_ydata()[0] for line in tokens] == [200.0]


def test_a_rollout_beside_an_update_takes_no_time_of_its_own_iteration() -> None:
    played = [
        {"iteration": 1, "time/rollout": 4.0, "time/ahead": 0.0, "time/update": 3.0, "time/waiting": 2.0},
        {"iteration": 2, "time/rollout": 5.0, "time/ahead": 5.0, "time/update": 3.0},
    ]
    rows = [row | {"time/iteration": seconds} for row, seconds in zip(played, (10.0, 3.5), strict=True)]
    phases = module._phases(Curves(rows, [], {}))
    assert phases["rollout"].y.tolist() == [4.0, 0.0]
    assert phases["waiting"].y[0] == 2.0
    assert phases["other"].y.tolist() == [1.0, 0.5]
