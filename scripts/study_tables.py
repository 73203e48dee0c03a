"""Update the tables of docs/results.md from the raw data of the study: ``python scripts/study_tables.py``.

A table stands between ``<!-- PART KIND: generated -->`` and ``<!-- end PART KIND -->``. PART is a folder of
results/study, followed by a slash and the name of a setting if it has several. KIND is one of

* outcome, dynamics, rise (success less that of the start), truth (what credit_truth.json says);
* minus-NAME: paired differences to an algorithm;
* setting-minus-NAME: those of every algorithm to itself in another setting;
* part-minus-PART: those of every algorithm to itself in another part, of the algorithms that both have;
* NAME-less-NAME: those of two algorithms in all numbers, a column for each PART of a list separated by commas.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import spearmanr

from openrlhf_gagpo.experiment.aggregate import Comparison, Summary, aggregate
from openrlhf_gagpo.experiment.archive import read_archive
from openrlhf_gagpo.stats import Estimate, PairedTest, mean, mean_interval, paired_test

__all__ = ["PAGE", "with_tables"]

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "results.md"
_MARKED = re.compile(r"(<!-- (\S+) (\S+): generated -->\n).*?(<!-- end \2 \3 -->)", re.DOTALL)

_SAMPLED, _GREEDY, _AREA = "final eval/success", "final eval/greedy_success", "area rollout/success"
_OUTCOME = {
    "sampled": _SAMPLED,
    "greedy": _GREEDY,
    "mean in training": _AREA,
    "steps at the end": "final eval/episode_length",
}
_DYNAMICS = {
    "gradient norm": "mean policy/grad_norm",
    "its variation": "variation policy/grad_norm",
    "entropy": "mean policy/entropy",
    "IQR of A": "mean credit/advantage_iqr",
    "share of abs(A) > 1": "mean credit/advantage_abs_gt1_share",
    "least A": "min credit/advantage_min",
    "largest A": "max credit/advantage_max",
    "visits of a state": "mean credit/state_group_size_mean",
    "CPU s": "cpu seconds",
}
_MEASURES = {
    "sign_accuracy": "equal signs",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "cosine": "cosine of gradients",
}
_LEARNED = {"area": "mean in training", "rise": "rise"}
_DIFFERENCES = {"sampled": _SAMPLED, "greedy": _GREEDY, "mean in training": _AREA}


def with_tables(page: str) -> str:
    """Return the page with every marked table made anew."""

    def made(match: re.Match[str]) -> str:
        if "-less-" in match[3]:
            return f"{match[1]}\n{_two_algorithms(match[2].split(','), *match[3].split('-less-'))}\n\n{match[4]}"
        part, _, setting = match[2].partition("/")
        return f"{match[1]}\n{_table(part, setting or 'default', match[3])}\n\n{match[4]}"

    return _MARKED.sub(made, page)


@functools.cache
def _comparison(part: str, baseline: str) -> Comparison:
    archive = read_archive(REPOSITORY / "results" / "study" / part / "runs.jsonl.gz")
    return aggregate(archive.runs, baseline or archive.baseline, "eval/success")


def _table(part: str, setting: str, kind: str) -> str:
    if kind.startswith("minus-"):
        return _differences(_comparison(part, kind.removeprefix("minus-")), setting)
    if kind == "truth":
        return _truth(REPOSITORY / "results" / "study" / part / "credit_truth.json")
    if kind == "rise":
        return _rises(_comparison(part, ""), setting)
    if kind.startswith("setting-minus-"):
        comparison = _comparison(part, "")
        return _to_themselves(comparison, setting, comparison, kind.removeprefix("setting-minus-"))
    if kind.startswith("part-minus-"):
        return _to_themselves(
            _comparison(part, ""), setting, _comparison(kind.removeprefix("part-minus-"), ""), setting
        )
    columns = {"outcome": _OUTCOME, "dynamics": _DYNAMICS}[kind]
    comparison = _comparison(part, "")
    rows = [["algorithm", "seeds", *columns]]
    for name in _ranked(comparison, setting):
        found = [comparison.summary(setting, name, metric) for metric in columns.values()]
        seeds = max(len(one.by_seed) for one in found if one is not None)
        rows.append([name, str(seeds), *("-" if one is None else _show(one.t) for one in found)])
    return _markdown(rows)


def _differences(comparison: Comparison, setting: str) -> str:
    found = {(item.algorithm, item.metric): item for item in comparison.differences if item.setting == setting}
    rows = [["algorithm", *(cell for label in _DIFFERENCES for cell in (label, "p (Holm)"))]]
    for name in _ranked(comparison, setting):
        cells = [found.get((name, metric)) for metric in _DIFFERENCES.values()]
        if all(cells):
            rows.append([name, *(text for one in cells if one for text in (_show(one.t), _p_value(one.corrected)))])
    return _markdown(rows)


def _to_themselves(here: Comparison, setting: str, there: Comparison, other: str) -> str:
    """Tabulate each algorithm's paired difference to itself elsewhere; p values are not corrected."""
    rows = [["algorithm", *(cell for label in _DIFFERENCES for cell in (label, "p"))]]
    for name in _ranked(here, setting):
        if there.summary(other, name, _SAMPLED) is None:
            continue
        pairs = [(here.summary(setting, name, one), there.summary(other, name, one)) for one in _DIFFERENCES.values()]
        tests = [_paired(*pair) for pair in pairs]
        rows.append([name, *(text for test in tests for text in (_show(test.difference), _p_value(test.p_value)))])
    return _markdown(rows)


def _rises(comparison: Comparison, setting: str) -> str:
    """Tabulate success at the end less that of the start, over seeds."""
    rows = [["algorithm", "sampled, end less start", "greedy, end less start"]]
    for name in _ranked(comparison, setting):
        ends = ((end, end.replace("final", "start")) for end in (_SAMPLED, _GREEDY))
        tests = [_paired(*(comparison.summary(setting, name, metric) for metric in pair)) for pair in ends]
        rows.append([name, *(_show(test.difference) for test in tests)])
    return _markdown(rows)


def _truth(file: Path) -> str:
    """Tabulate how close each estimator came to the truth, and how well that predicts what was learned.

    The last two rows are Spearman's correlations within a seed over algorithms, averaged over seeds.
    """
    lines = json.loads(file.read_text(encoding="utf-8"))
    of = {name: [line for line in lines if line["algorithm"] == name] for name in {line["algorithm"] for line in lines}}
    average = {
        name: {key: mean(line[key] for line in own) for key in (*_MEASURES, *_LEARNED)} for name, own in of.items()
    }
    rows = [["", *_MEASURES.values(), *_LEARNED.values()]]
    for name in sorted(average, key=lambda name: -average[name]["area"]):
        rows.append([f"`{name}`", *(f"{value:.2f}" for value in average[name].values())])
    seeds = sorted({line["seed"] for line in lines})
    for learned, label in _LEARNED.items():
        found = []
        for measure in _MEASURES:
            pairs = [[(line[measure], line[learned]) for line in lines if line["seed"] == seed] for seed in seeds]
            found.append(_show(mean_interval([float(spearmanr(one).statistic) for one in pairs])))
        rows.append([f"correlation with {label}", *found, "", ""])
    return _markdown(rows)


def _two_algorithms(parts: Sequence[str], first: str, second: str) -> str:
    """Tabulate the paired difference of two algorithms in each part, a number per row; nothing is corrected."""
    rows = [["number", *parts]]
    for label, metric in (_OUTCOME | _DYNAMICS).items():
        pairs = [[_comparison(part, "").summary("default", name, metric) for name in (first, second)] for part in parts]
        rows.append([label, *(_show(_paired(*pair).difference) for pair in pairs)])
    return _markdown(rows)


def _paired(first: Summary | None, second: Summary | None) -> PairedTest:
    """Compare two numbers over the seeds that have both."""
    here, there = (found.by_seed if found else {} for found in (first, second))
    seeds = sorted(here.keys() & there.keys())
    return paired_test([here[seed] for seed in seeds], [there[seed] for seed in seeds])


def _ranked(comparison: Comparison, setting: str) -> list[str]:
    """Return the algorithms, the one with the highest sampled success first."""
    found = [item for item in comparison.summaries if (item.setting, item.metric) == (setting, _SAMPLED)]
    return [item.algorithm for item in sorted(found, key=lambda item: -item.t.mean)]


def _show(value: Estimate) -> str:
    digits = 0 if abs(value.mean) >= 100 else 1 if abs(value.mean) >= 10 else 2
    if value.count < 2:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
