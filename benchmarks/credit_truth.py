"""Whether an estimator that is closer to the truth learns more: measures of credit beside what finished runs learned.

    python benchmarks/credit_truth.py FOLDER ... [--recorded FOLDER] [--iteration N] [--output FILE]
    python benchmarks/credit_truth.py FOLDER ... --continuations N [--states M]

Each folder is a finished run, or the ``--out`` of ``gagpo compare``, whose finished cells are taken. An iteration of
each run, the first by default, gives the measures of its own estimator with its own options against the truth under its
own gamma. In the first iteration all cells of a seed have played the same episodes, and the truth is found once for
them. Cells that recorded no episodes take those of the same cell in ``--recorded``, the ``--out`` of a shorter
comparison with the same starts.

What was learned is the rise of sampled success from the first evaluation to the last, and the mean success of training
episodes. Below the lines of the runs stand the means of each algorithm, then how well each measure predicts either:
Spearman's correlation over the means of algorithms, and the mean over seeds of the correlation over algorithms within a
seed, with its 95 % t interval. With few algorithms they say little.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import spearmanr

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.comparison.compute import Credit, compute
from openrlhf_gagpo.comparison.recorded import read_run as read_steps
from openrlhf_gagpo.comparison.steps import Own, Source
from openrlhf_gagpo.config.families import ESTIMATOR, families
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.errors import ConfigError, GagpoError
from openrlhf_gagpo.experiment.jobs import RECORD, read_json, start_evaluation
from openrlhf_gagpo.experiment.results import Run, read_run, reduced
from openrlhf_gagpo.rollout.records import read_episodes
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import mean_interval
from openrlhf_gagpo.truth.continuations import Budget
from openrlhf_gagpo.truth.referee import judge

MEASURES = ("sign_accuracy", "pearson", "spearman", "cosine")
LEARNED = ("rise", "area")
Line = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Measured:
    """A run with the credit of its own estimator on recorded steps."""

    run: Run
    recorded: Path
    source: Source
    credit: Credit

    @property
    def gamma(self) -> float:
        """Discount factor of the estimator; 1 if it has none."""
        return float(getattr(self.credit.options, "gamma", 1.0))


def finished_runs(folders: Iterable[Path]) -> Iterator[Run]:
    """Yield the finished runs in folders of comparisons, and those given themselves."""
    for folder in folders:
        cells = sorted((folder / "cells").glob("*/*/seed*"))
        for path in cells or [folder]:
            # A cell that has not begun is no run folder yet.
            if cells and not (path / "run.json").exists():
                continue
            run = RunFolder.open(path)
            if run.info()["state"] == "finished":
                cell = read_json(path / RECORD)
                setting, name = str(cell.get("setting", "")), cell.get("algorithm") or run.config()["values"][ESTIMATOR]
                # A cell may leave the evaluation before training to the start that it shares.
                start = start_evaluation(path.parents[3] / "starts" / setting / path.name) if cell else None
                yield read_run(path, setting, str(name), start)


def measured(run: Run, recorded: Path, iteration: int) -> Measured:
    """Compute the credit of a run's estimator, with the run's options, on recorded steps."""
    own, source = own_estimator(run.folder), read_steps(recorded, str(iteration))
    return Measured(run, recorded, source, compute(source, own.estimator, own.options))


def own_estimator(folder: Path) -> Own:
    """Return estimator and options of a run, which may have no recorded steps."""
    config = resolve(["--config", str(RunFolder.open(folder).config_path)])
    return Own(config.get(ESTIMATOR), config.options(families()[0]))


def played_alike(found: Measured, iteration: int) -> object:
    """Return what is equal for runs whose steps have the same truth: start, episodes, and steps that are compared."""
    run = RunFolder.open(found.recorded)
    steps = [step for episode in read_episodes(run.rollout_path(iteration)) for step in episode.steps]
    played = tuple((*step.prompt_ids, None, *step.response_ids) for step in steps)
    compared = tuple(tuple(row.values()) for row in found.source.identity)
    return hash((run.config()["values"]["actor.model_name_or_path"], played, compared))


def lines_of(group: Sequence[Measured], budget: Budget | None) -> list[Line]:
    """Find the truth for runs with the same episodes once, and return one line per run."""
    gammas = sorted({found.gamma for found in group})
    credits = [found.credit for found in group]
    first = group[0]
    verdict = judge(first.recorded, first.source, credits, gammas=gammas, model=None, budget=budget)
    # Per gamma, scores come in the order of the credits, and the critic's, if there is one, after them.
    size = len(verdict.scores) // len(gammas)
    lines = []
    for place, found in enumerate(group):
        score = verdict.scores[gammas.index(found.gamma) * size + place]
        numbers = reduced(found.run)
        line: Line = {
            "setting": found.run.setting,
            "algorithm": found.run.algorithm,
            "estimator": found.credit.estimator,
            "seed": found.run.seed,
            "rise": numbers["final eval/success"] - numbers["start eval/success"],
            "area": numbers["area rollout/success"],
            "gamma": found.gamma,
            "steps": score.steps,
            "signed": score.signed,
            **{measure: getattr(score, measure) for measure in MEASURES},
        }
        lines.append(line)
    return lines


def means(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Return the means over runs of each algorithm, by algorithm and number; NaN where a run lacks the number."""
    names = dict.fromkeys(str(line["algorithm"]) for line in lines)
    return {
        name: {
            key: statistics.fmean(_number(line[key]) for line in lines if line["algorithm"] == name)
            for key in (*MEASURES, *LEARNED)
        }
        for name in names
    }


def correlation(rows: Iterable[Mapping[str, object]], measure: str, learned: str) -> float:
    """Return Spearman's correlation of two numbers; NaN with fewer than three rows, or if either does not vary."""
    pairs = [(_number(row[measure]), _number(row[learned])) for row in rows]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    if len(pairs) < 3 or any(len(set(column)) < 2 for column in zip(*pairs, strict=True)):
        return math.nan
    return float(spearmanr(pairs).statistic)


def summary(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the lines about one setting: means of algorithms, then how well each measure predicts."""
    of_algorithm = means(lines)
    for name, numbers in of_algorithm.items():
        yield f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
    seeds = dict.fromkeys(line["seed"] for line in lines)
    for measure in MEASURES:
        for learned in LEARNED:
            over = correlation(of_algorithm.values(), measure, learned)
            each = [correlation([line for line in lines if line["seed"] == seed], measure, learned) for seed in seeds]
            inside = mean_interval([value for value in each if math.isfinite(value)])
            yield (
                f"{measure} and {learned}: {over:.2f} over {len(of_algorithm)} algorithms, {inside.mean:.2f} "
                f"[{inside.low:.2f}, {inside.high:.2f}] within {inside.count} seeds"
            )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def main(argv: Sequence[str]) -> None:
    """Write one JSON line per run, then the summary of each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--recorded", type=Path, metavar="FOLDER", help="comparison whose cells recorded episodes")
    parser.add_argument("--iteration", type=int, default=1, metavar="N")
    parser.add_argument("--continuations", type=int, metavar="N", help="estimate the truth, as gagpo credit does")
    parser.add_argument("--states", type=int, default=256, metavar="M", help="recorded states at which to do so")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the lines as JSON")
    given = parser.parse_args(argv)
    budget = Budget(given.states, given.continuations, 0) if given.continuations else None
    groups: dict[object, list[Measured]] = defaultdict(list)
    for run in finished_runs(given.folders):
        if "start eval/success" not in reduced(run) or len(run.evals) < 2:
            raise ConfigError(
                f"{run.folder} has fewer than two evaluations; train with --eval.before_train and --eval.after_train"
            )
        recorded = run.folder
        if given.recorded is not None:
            recorded = given.recorded / "cells" / run.setting / run.algorithm / f"seed{run.seed}"
        found = measured(run, recorded, given.iteration)
        groups[played_alike(found, given.iteration)].append(found)
    lines: list[Line] = []
    for group in groups.values():
        for line in lines_of(group, budget):
            lines.append(line)
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    for setting in dict.fromkeys(line["setting"] for line in lines):
        for text in summary([line for line in lines if line["setting"] == setting]):
            sys.stdout.write(f"{setting}: {text}\n" if setting else f"{text}\n")
    if given.output is not None:
        given.output.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    hygiene.apply()
    try:
        main(sys.argv[1:])
    except GagpoError as error:
        raise SystemExit(str(error)) from error
