"""Tables and curves of made-up runs against numbers computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo.cli import compare
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.experiment.aggregate import aggregate
from openrlhf_gagpo.experiment.figures import band_over_seeds
from openrlhf_gagpo.experiment.output import write_results
from openrlhf_gagpo.experiment.results import Run, read_run, reduced, series
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import pairs_for_power

FINAL = {"a": [0.5, 0.6, 0.4, 0.5], "b": [0.7, 0.8, 0.7, 0.6], "c": [0.5, 0.7, 0.5, 0.5]}


def made(folder: Path, label: str, seed: int, success: float, **values: Any) -> RunFolder:
    config = {"train.seed": seed, "algo.advantage.estimator": label, "env.name": "x", "env.workers": seed} | values
    run = RunFolder.create(folder, {"values": config, "origins": {}}, "", seed=seed)
    with run.tracked():
        run.append_eval(0, {"eval/success": 0.1, "eval/greedy_success": 0.0}, split="test")
        for iteration, norm in ((1, 1.0), (2, 3.0)):
            row = {
                "rollout/success": success * iteration / 2,
                "rollout/steps": 10 * iteration,
                "rollout/prompt_tokens": 5.0,
                "rollout/response_tokens": 2.0,
                "policy/grad_norm": norm,
                "credit/advantage_min": -float(iteration),
                "credit/advantage_max": 3.0 - iteration,
                "time/iteration": 4.0,
            }
            run.append_metrics(iteration, row)
        run.append_eval(
            2, {"eval/success": success, "eval/greedy_success": success / 2, "time/eval": 0.5}, split="test"
        )
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [
        read_run(made(tmp_path / f"{label}{seed}", label, seed, success).path, "here", label)
        for label, column in FINAL.items()
        for seed, success in enumerate(column)
    ]


def test_the_evaluation_of_a_shared_start_stands_in_for_a_first_one(tmp_path: Path) -> None:
    alone, start = (made(tmp_path / name, name, 0, success) for name, success in (("alone", 0.8), ("start", 0.3)))
    evaluated = read_run(alone.path, "here", "alone", start.path)
    assert [row["eval/success"] for row in evaluated.evals] == [0.1, 0.8], "a run's own evaluation comes first"
    alone.eval_path.write_text(alone.eval_path.read_text().splitlines(keepends=True)[-1])
    evaluated = read_run(alone.path, "here", "alone", start.path)
    assert [(row["iteration"], row["eval/success"]) for row in evaluated.evals] == [(0, 0.3), (2, 0.8)]
    assert reduced(evaluated)["start eval/success"] == 0.3
    assert "start eval/success" not in reduced(read_run(alone.path, "here", "alone")), "its first one comes later"


def test_categories_of_tasks_are_numbers_of_their_own(tmp_path: Path) -> None:
    run = made(tmp_path / "r", "r", 0, 0.8)
    run.append_eval(
        3, {"eval/success": 0.5, "eval/success/two-hop": 0.25, "eval/success_low/two-hop": 0.1}, split="test"
    )
    numbers = reduced(read_run(run.path, "here", "r"))
    assert numbers["final eval/success/two-hop"] == 0.25
    assert not any("success_low" in name for name in numbers)


def test_a_run_is_reduced_to_numbers(runs: Sequence[Run]) -> None:
    numbers = reduced(runs[4])
    assert numbers == pytest.approx(
        {
            "start eval/success": 0.1,
            "final eval/success": 0.7,
            "start eval/greedy_success": 0.0,
            "final eval/greedy_success": 0.35,
            "rise eval/success": 0.6,
            "rise eval/greedy_success": 0.35,
            "area rollout/success": 0.525,
            "mean policy/grad_norm": 2.0,
            "variation policy/grad_norm": 2**0.5 / 2,
            "min credit/advantage_min": -2.0,
            "max credit/advantage_max": 2.0,
            "wall seconds": 8.5,
            "training environment steps": 30.0,
            "training tokens": 210.0,
        }
    )


def test_summaries_and_paired_differences(runs: Sequence[Run]) -> None:
    found = aggregate(runs, "a", "eval/success")
    summary = found.summary("here", "b", "final eval/success")
    assert summary is not None
    assert (summary.t.mean, summary.spread, summary.t.count) == pytest.approx((0.7, 0.0816497, 4))
    # 3.182446 standard errors of 0.0408248.
    assert (summary.t.low, summary.t.high) == pytest.approx((0.7 - 0.129922, 0.7 + 0.129922), abs=1e-5)
    first, second = [item for item in found.differences if item.metric == "final eval/success"]
    assert (first.algorithm, second.algorithm) == ("b", "c")
    # Differences .2 .2 .3 .1 (t = 4.89898) and 0 .1 .1 0 (t = 1.73205), each with 3 degrees of freedom.
    assert (first.t.mean, first.spread, first.p_value) == pytest.approx((0.2, 0.0816497, 0.016280), abs=1e-5)
    assert (second.t.mean, second.spread, second.p_value) == pytest.approx((0.05, 0.0577350, 0.181690), abs=1e-5)
    assert (first.corrected, second.corrected) == pytest.approx((0.032560, 0.181690), abs=1e-5)
    assert (first.pairs, second.pairs) == (pairs_for_power(0.2, 0.0816497), pairs_for_power(0.05, 0.0577350))
    assert any("fewer than six pairs" in note for note in found.notes)


def test_only_common_seeds_are_paired_and_one_seed_has_no_interval(runs: Sequence[Run], tmp_path: Path) -> None:
    found = aggregate([runs[0], runs[5], *runs[8:9]], "a", "eval/success")
    assert [(item.algorithm, item.t.count) for item in found.differences if item.metric == found.primary] == [("c", 1)]
    assert found.notes[0] == "One seed only, so no interval and no test: here/a, here/b, here/c."
    write_results(tmp_path, found, {}, ["here/a/seed9"])
    text = (tmp_path / "results.md").read_text()
    assert "| a | final eval/success | 1 | 0.5 |  | none (one seed) | none (one seed) |" in text
    assert "Without a result: here/a/seed9." in text


def test_the_page_shows_every_curve(runs: Sequence[Run], tmp_path: Path) -> None:
    page = write_results(tmp_path, aggregate(runs, "a", "eval/success"), {}, []).read_text()
    assert page.count("<figure>") == 9
    assert "| final eval/success | b | 4 | 0.2 | 0.08165 | 0.07008 to 0.3299 |" in (tmp_path / "results.md").read_text()


def test_runs_of_different_environments_share_no_table(runs: Sequence[Run]) -> None:
    other = replace(runs[5], values=dict(runs[5].values) | {"env.max_steps": 3})
    with pytest.raises(ConfigError, match=r"a0 and .*b1 differ in env.max_steps \(None and 3\)"):
        aggregate([runs[0], other], "a", "eval/success")
    assert aggregate([runs[0], replace(other, setting="there")], "a", "eval/success").summaries


def test_notes_name_what_weakens_a_comparison(runs: Sequence[Run]) -> None:
    notes = aggregate([runs[0], replace(runs[1], commit="other", side_by_side=2)], "a", "eval/success").notes
    assert any("2 commits" in note and "other" in note for note in notes)
    assert any("times on the clock" in note for note in notes)


def test_curves_lie_on_every_axis(runs: Sequence[Run]) -> None:
    ends = {name: series(runs[4], "eval/success", name)[0].tolist() for name in ("iterations", "environment steps")}
    assert ends == {"iterations": [0, 2], "environment steps": [0, 30]}
    assert series(runs[4], "eval/success", "tokens")[0].tolist() == [0, 210]
    assert series(runs[4], "rollout/success", "seconds")[0].tolist() == [4, 8]


def test_a_band_over_seeds() -> None:
    first, second = (np.array([0.0, 2.0]), np.array([1.0, 3.0])), (np.array([0.0, 1.0]), np.array([3.0, 3.0]))
    x, middle, low, high = band_over_seeds([first, second], shared=True)
    assert x.tolist() == [0, 1, 2]
    assert middle.tolist() == [2, 3, 3]
    # 12.7062 standard errors of 1.
    assert (low[0], high[0]) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert np.isnan(low[1:]).all()
    x, middle, _, _ = band_over_seeds([first, second], shared=False)
    # Up to the end of the shorter curve, at which the other is half way.
    assert (x[0], x[-1], middle[0], middle[-1]) == (0, 1, 2, 2.5)
    assert [len(part) for part in band_over_seeds([], shared=True)] == [0, 0, 0, 0]


def test_finished_runs_are_compared_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = [str(made(tmp_path / f"one{seed}", "a", seed, 0.1 * seed).path) for seed in (1, 2)]
    two = [f"mine={made(tmp_path / f'two{seed}', 'a', seed, 0.2 * seed, lr=1).path}" for seed in (1, 2)]
    assert compare.main([*one, *two, "--out", str(tmp_path / "out"), "--baseline", "mine"]) == 0
    assert "| final eval/success | a | 2 | -0.15 |" in (tmp_path / "out" / "results.md").read_text()
    assert "report: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["one1", "two1"], r"one1 and .*two1 are both a but differ in lr .*: NAME=RUN"),
        (["one1", "one1"], "second run of a with seed 1"),
        (["one1", "--baseline", "z"], "--baseline is 'z'; it must be one of a"),
        (["going"], "going is running; a comparison takes finished runs"),
        (["nowhere"], "no run folder at"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path: Path, given: list[str], words: str) -> None:
    made(tmp_path / "one1", "a", 1, 0.1)
    made(tmp_path / "two1", "a", 1, 0.1, lr=1)
    made(tmp_path / "going", "a", 1, 0.1).set_state("running")
    argv = [word if word.startswith("--") or word == "z" else str(tmp_path / word) for word in given]
    with pytest.raises(Exception, match=words) as raised:
        compare.main([*argv, "--out", str(tmp_path / "out")])
    assert type(raised.value).__name__ in ("ConfigError", "RunFolderError")
