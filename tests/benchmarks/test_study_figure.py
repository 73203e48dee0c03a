"""The figure of a comparison, from the archive of one."""

from __future__ import annotations

import pytest

from openrlhf_gagpo.experiment.aggregate import aggregate
from openrlhf_gagpo.experiment.archive import read_archive
from support.paths import REPOSITORY


def test_every_algorithm_has_its_place_by_sampled_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import study_figure

    found = read_archive(REPOSITORY / "results/search_qa/runs.jsonl.gz")
    comparison = aggregate(found.runs, found.baseline, found.primary)
    curves, ends = study_figure.draw(comparison, "default", ["gagpo", "igpo"]).axes
    assert [line.get_label() for line in curves.get_lines()] == ["gagpo (5 seeds)", "igpo (5 seeds)"]
    names = [label.get_text() for label in ends.get_yticklabels()]
    assert sorted(names) == sorted({run.algorithm for run in found.runs})
    (points, *_), *_ = ends.containers
    middle = points.get_xdata().tolist()
    assert middle == sorted(middle)
    best = comparison.summary("default", names[-1], "final eval/success")
    assert best is not None
    assert middle[-1] == best.t.mean
