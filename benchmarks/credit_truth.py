"""Whether an estimator that is closer to the truth learns more: measures of credit beside the rise in success.

    python benchmarks/credit_truth.py RUN RUN ... [--iteration N] [--output FILE]

Each run is a finished folder whose first iteration was played by its start model, best the same one in all. The first
iteration (or ``--iteration``) of every run gives the measures of the run's own estimator under its own gamma; the rise
is the success of the last evaluation minus that of the first. Below the runs stands, for every measure, Spearman's
correlation with the rise over the means per estimator. With few estimators it says little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import spearmanr

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.comparison.compute import compute
from openrlhf_gagpo.comparison.source import read_source
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.truth.referee import judge
from openrlhf_gagpo.truth.scores import Score

MEASURES = ("sign_accuracy", "pearson", "spearman", "cosine")


def measures(run: Path, iteration: str) -> tuple[str, Score]:
    """Return the estimator of a run, and its score on an iteration."""
    source = read_source(run, iteration)
    if source.own is None:
        raise SystemExit(f"{run} is not a run folder; give finished runs")
    credit = compute(source, source.own.estimator, source.own.options)
    gamma = float(getattr(source.own.options, "gamma", 1.0))
    verdict = judge(run, source, [credit], gammas=[gamma], model=None)
    return credit.estimator, verdict.scores[0]


def rise(run: Path) -> float:
    """Return how much the success of evaluations rose."""
    rows = [row["eval/success"] for row in RunFolder.open(run).evals()]
    if len(rows) < 2:
        raise SystemExit(f"{run} has fewer than two evaluations; train with --eval.before_train and --eval.after_train")
    return float(rows[-1] - rows[0])


def main(argv: Sequence[str]) -> None:
    """Write one line per run, then the correlation of each measure with the rise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--iteration", default="1", metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the lines as JSON")
    given = parser.parse_args(argv)
    lines = []
    for run in given.runs:
        name, found = measures(run, given.iteration)
        values = {measure: getattr(found, measure) for measure in MEASURES}
        lines.append({"run": run.name, "estimator": name, "rise": rise(run), **values})
        sys.stdout.write(json.dumps(lines[-1]) + "\n")
    names = sorted({line["estimator"] for line in lines})
    for measure in MEASURES:
        known = {
            name: [line for line in lines if line["estimator"] == name and line[measure] is not None] for name in names
        }
        means = [
            [statistics.fmean(line[key] for line in of_one) for key in (measure, "rise")]
            for of_one in known.values()
            if of_one
        ]
        agrees = spearmanr(means).statistic if len(means) > 2 else float("nan")
        sys.stdout.write(f"{measure}: rank correlation with the rise {agrees:.2f} over {len(means)} estimators\n")
    if given.output is not None:
        given.output.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    hygiene.apply()
    main(sys.argv[1:])
