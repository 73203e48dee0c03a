from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from openrlhf_gagpo.errors import RunFolderError
from openrlhf_gagpo.metrics import undocumented
from openrlhf_gagpo.report import build_report, plot_curve
from openrlhf_gagpo.rollout.records import write_episodes
from openrlhf_gagpo.runfolder import RunFolder
from support.report_runs import CONFIG, PROMPT, episode, eval_row, make_run, training_row

_VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Balance(HTMLParser):
    """Checks that tags close in order and collects the addresses a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(path: Path) -> str:
    html = path.read_text(encoding="utf-8")
    parser = _Balance()
    parser.feed(html)
    assert parser.open == []
    assert all(address.startswith(("data:", "#")) for address in parser.loads)
    assert all(f'id="{address[1:]}"' in html for address in parser.loads if address.startswith("#"))
    assert "url(" not in html
    assert "@import" not in html
    return html


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture
def bare(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "bare", CONFIG, PROMPT)


def test_full_report(full: RunFolder) -> None:
    assert undocumented([*full.metrics(), *full.evals()]) == set()
    html = read(build_report(full.path))
    assert "4.7 %" in html
    assert "92.2 %" in html
    assert re.search(r"95 % interval 1\.6 to 12\.9 %, n = 64", html)
    assert html.count("<figure>") == 17
    assert "recipe examples/recipes/vault_demo.yaml" in html
    assert "24 of 24" in html
    assert "Iteration 1, best (success, then return): solved" in html
    assert "4 more steps are not shown." in html
    assert "before training" in html


def test_text_from_the_run_is_escaped(full: RunFolder) -> None:
    html = read(build_report(full.path))
    assert "<b>key</b>" not in html
    assert "A door &amp; a &lt;b&gt;key&lt;/b&gt;." in html
    assert "Answer with &lt;one&gt; action." in html


def test_greedy_success_stands_beside_sampled_success(bare: RunFolder) -> None:
    greedy = {"eval/greedy_success": 0.25, "eval/greedy_success_low": 0.125, "eval/greedy_success_high": 0.375}
    bare.append_eval(0, eval_row(3, 64) | greedy, split="valid")
    bare.append_eval(2, eval_row(3, 64), split="valid")
    bare.append_eval(4, eval_row(3, 64) | greedy | {"eval/greedy_success": 0.3125}, split="valid")
    html = read(build_report(bare.path))
    assert "greedy 25.0 % (12.5 to 37.5)" in html
    assert "greedy 31.2 % (12.5 to 37.5)" in html


def test_categories_have_their_intervals(bare: RunFolder) -> None:
    bare.append_eval(0, eval_row(3, 64), split="valid")
    logged = {"eval/success": 0.5, "eval/success/heat": 0.25, "eval/success/cool": 0.5, "eval/tasks/cool": 10}
    logged |= {"eval/success_low/heat": 0.125, "eval/success_high/heat": 0.375}
    bare.append_eval(4, logged, split="valid")
    html = read(build_report(bare.path))
    assert (
        '<td>cool</td><td class="n">10</td><td class="n">5.2 % (1.7 to 20.1)</td><td class="n">50.0 % (23.7 to' in html
    )
    assert '<td>heat</td><td class="n"></td><td class="n">4.7 % (1.7 to 20.1)</td><td class="n">25.0 % (12.5 to' in html


def test_text_that_no_encoding_holds(bare: RunFolder) -> None:
    write_episodes(bare.rollout_path(1), [episode(0, success=True, observation="a \ud800 b")])
    assert "a \\ud800 b" in read(build_report(bare.path))


def test_equal_runs_give_equal_figures(full: RunFolder) -> None:
    first = read(build_report(full.path))
    assert read(build_report(full.path)) == first


def test_nothing_logged(bare: RunFolder) -> None:
    html = read(build_report(bare.path))
    assert "No evaluation was recorded." in html
    assert "No iteration was recorded." in html
    assert "Sample episodes" not in html


def test_only_run_json_left(bare: RunFolder) -> None:
    for file in (bare.config_path, bare.prompt_path, bare.metrics_path, bare.eval_path):
        file.unlink()
    bare.rollouts_dir.rmdir()
    assert "Configuration" not in read(build_report(bare.path))


def test_one_iteration(bare: RunFolder) -> None:
    bare.append_metrics(1, training_row(1))
    bare.append_eval(0, eval_row(0, 8), split="valid")
    html = read(build_report(bare.path))
    assert html.count("<figure>") == 16
    assert "0.0 %" in html


@pytest.mark.parametrize("name", sorted(training_row(1).keys() - {"rollout/episodes", "rollout/steps"}))
def test_any_single_metric(bare: RunFolder, name: str) -> None:
    for i in (1, 2):
        bare.append_metrics(i, {name: training_row(i)[name] or 1.0})
    assert read(build_report(bare.path)).count("<figure>") == 1


def test_nothing_finite(bare: RunFolder) -> None:
    for i in (1, 2):
        bare.append_metrics(i, dict.fromkeys(training_row(i), math.nan))
    bare.append_eval(0, dict.fromkeys(eval_row(1, 2), math.nan), split="valid")
    html = read(build_report(bare.path))
    assert "<figure>" not in html
    assert "No evaluation was recorded." in html


def test_interval_is_worked_out_when_only_the_number_of_tasks_is_known(bare: RunFolder) -> None:
    bare.append_eval(3, {"eval/success": 0.5, "eval/tasks": 10}, split="valid")
    assert "95 % interval 23.7 to 76.3 %, n = 10" in read(build_report(bare.path))
    bare.append_eval(4, {"eval/success": 0.25}, split="valid")
    assert "after iteration 4" in read(build_report(bare.path))


def test_gaps_in_the_iterations_and_a_failed_run(bare: RunFolder) -> None:
    for i in (2, 7):
        bare.append_metrics(i, training_row(i))
    bare.set_state("failed", "RuntimeError: <out of memory>")
    html = read(build_report(bare.path))
    assert "RuntimeError: &lt;out of memory&gt;" in html


def test_unreadable_episodes_are_named_and_the_rest_is_shown(bare: RunFolder) -> None:
    bare.rollout_path(1).write_bytes(b"nonsense")
    write_episodes(bare.rollout_path(2), [episode(0, success=True)])
    html = read(build_report(bare.path))
    assert "is not an episode file" in html
    assert "Iteration 2, first episode: solved" in html


def test_config_shapes(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {"env": {"name": "vault"}, "origins": {"env.name": "default"}}, "")
    assert '<td class="name">env.name</td><td class="value">vault</td><td>default</td>' in read(build_report(run.path))
    options = {"values": {"env.options": {"size": 3}}, "origins": {"env.options": "command line"}}
    run = RunFolder.create(tmp_path / "options", options, "")
    row = '<td class="name">env.options.size</td><td class="value">3</td><td>command line</td>'
    assert row in read(build_report(run.path))
    run = RunFolder.create(tmp_path / "plain", {"env.name": "vault"}, "")
    assert '<td class="name">env.name</td><td class="value">vault</td><td></td>' in read(build_report(run.path))


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="not a run folder"):
        build_report(tmp_path)


def test_plot_curve(tmp_path: Path) -> None:
    runs = []
    for seed in (1, 2):
        run = RunFolder.create(tmp_path / f"seed{seed}", {}, "")
        for i in range(1, 4 + seed):
            run.append_metrics(i, training_row(i, seed) | ({"rollout/success": math.nan} if i == 2 else {}))
        run.append_eval(0, eval_row(seed, 8), split="valid")
        runs.append(run.path)
    assert plot_curve(runs, tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    svg = plot_curve(runs, tmp_path / "a.svg", metrics={"success": "eval/success"}, title="Vault").read_bytes()
    assert b"<svg" in svg
    both = {"in training": "rollout/success", "held out": "eval/success"}
    assert plot_curve(runs, tmp_path / "c.svg", metrics=both).read_bytes().count(b"<path") > svg.count(b"<path")
    assert plot_curve(runs, tmp_path / "b.svg", metrics={"success": "eval/success"}, title="Vault").read_bytes() == svg


def test_plot_curve_says_what_is_wrong(tmp_path: Path, bare: RunFolder) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        plot_curve([], tmp_path / "x.png")
    with pytest.raises(ValueError, match="none of the runs"):
        plot_curve([bare.path], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        plot_curve([bare.path], tmp_path / "x.pdf")
