"""``gagpo compare``: run a matrix of algorithms, settings and seeds, or compare finished runs."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.cli import warmstart
from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from openrlhf_gagpo.experiment.archive import Archive
    from openrlhf_gagpo.experiment.runner import Runner

__all__ = ["main", "parse"]

_RUNS = "runs"
"""Setting of runs that were named on the command line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `gagpo compare --help` describes the arguments")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return checked arguments. Raises ``ConfigError`` for unusable ones and ``SystemExit`` after ``--help``."""
    parser = _Parser(
        prog="gagpo compare",
        usage="gagpo compare MATRIX.yaml --out DIR [--jobs N] [--dry_run] | gagpo compare [NAME=]RUN ... --out DIR | "
        "gagpo compare runs.jsonl.gz --out DIR",
        description="Run algorithms x settings x seeds cell by cell and compare them. The same command goes on after "
        "an interruption: finished cells are kept. From runs.jsonl.gz, which it writes, the report is made again.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="MATRIX_OR_RUN", help="a matrix file, finished run folders, or an archive"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of cells and report")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells side by side (default %(default)s)")
    parser.add_argument("--dry_run", action="store_true", help="print cells and commands, then stop")
    parser.add_argument(
        "--baseline", metavar="NAME", help="of finished runs: algorithm to compare with; default: the first"
    )
    parser.add_argument("--primary", metavar="METRIC", help="of finished runs: what is compared; default eval/success")
    given = parser.parse_args(list(argv))
    given.matrix = len(given.inputs) == 1 and Path(given.inputs[0]).suffix in (".yaml", ".yml")
    given.archive = len(given.inputs) == 1 and given.inputs[0].endswith(".jsonl.gz")
    if given.jobs < 1:
        raise ConfigError(f"--jobs is {given.jobs}; it must be at least 1")
    for name in ("baseline", "primary"):
        if given.matrix and getattr(given, name) is not None:
            raise ConfigError(f"--{name} is for finished runs; write {name}: into the matrix")
    if not given.matrix and given.dry_run:
        raise ConfigError("--dry_run is for a matrix; finished runs are only read")
    return given


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit status.

    Raises:
        ConfigError: the matrix or the runs cannot be used.
        RunError: some cell has no result; the report holds the others.
    """
    given = parse(argv)
    from rich.console import Console

    console = Console(highlight=False)
    if given.archive:
        return _archive(given, console)
    return _matrix(given, console) if given.matrix else _runs(given, console)


def _matrix(given: argparse.Namespace, console: Console) -> int:
    from openrlhf_gagpo.experiment.archive import Archive
    from openrlhf_gagpo.experiment.cells import plan
    from openrlhf_gagpo.experiment.jobs import read_json
    from openrlhf_gagpo.experiment.matrix import read_matrix
    from openrlhf_gagpo.experiment.results import read_run
    from openrlhf_gagpo.experiment.runner import Runner, locked
    from openrlhf_gagpo.interrupts import terminate_as_interrupt

    matrix = read_matrix(Path(given.inputs[0]))
    # A job of a cluster starts in a folder of its own.
    out = given.out.resolve() if matrix.submit == "ray" else given.out
    with locked(out), terminate_as_interrupt():
        made = plan(matrix, out)
        runner = Runner(made, given.jobs, console)
        for start in runner.starts():
            warmstart.parse(start.arguments(start.seed))
        if given.dry_run:
            _show(runner, console)
            return 0
        cells = runner.run()
        evaluated = {(start.setting, start.seed): start.evaluation for start in runner.starts()}
        runs = [
            read_run(cell.folder, cell.setting, cell.algorithm, evaluated.get((cell.setting, cell.seed)))
            for cell in runner.finished(cells)
        ]
        tuning = read_json(out / "tuning.json") if matrix.tuning else {}
        if runs:
            _report(out, Archive(runs, matrix.baseline, matrix.primary, tuning, runner.failed), console)
    if runner.failed:
        raise RunError(
            f"{len(runner.failed)} cells or starts have no result ({', '.join(runner.failed)}): see stderr.txt "
            "and libraries.log in their folders; the same command tries them again"
        )
    return 0


def _show(runner: Runner, console: Console) -> None:
    """Print what would be run, in order; a tuned value is not known before the tuning stage."""
    from openrlhf_gagpo.experiment.cells import is_finished

    def line(name: str, kept: bool, words: Sequence[str]) -> None:
        text = f"{name}{' (kept)' if kept else ''}: gagpo {shlex.join(words)}"
        console.print(text, markup=False, soft_wrap=True)

    plan, tuned = runner.plan, runner.plan.matrix.tuning
    for start in runner.starts():
        line(f"start {start.name}", start.kept, ["warmstart", *start.arguments(start.seed)])
    for cell in plan.tuning():
        line(f"tuning {cell.name}", is_finished(cell), ["train", *cell.arguments()])
    final = plan.final(dict.fromkeys(plan.recipes))
    for cell in final:
        words = ["train", *cell.arguments(), *([f"--{tuned.flag}", "CHOSEN"] if tuned else [])]
        line(f"cell {cell.name}", is_finished(cell), words)


def _runs(given: argparse.Namespace, console: Console) -> int:
    from openrlhf_gagpo.config.families import ESTIMATOR
    from openrlhf_gagpo.experiment.aggregate import label_runs
    from openrlhf_gagpo.experiment.archive import Archive
    from openrlhf_gagpo.experiment.cells import OWN
    from openrlhf_gagpo.experiment.matrix import PRIMARY
    from openrlhf_gagpo.experiment.results import read_run
    from openrlhf_gagpo.experiment.runner import locked
    from openrlhf_gagpo.runfolder import RunFolder

    runs = []
    for text in given.inputs:
        label, equals, path = text.rpartition("=")
        folder = RunFolder.open(path if equals else text)
        if (state := folder.info()["state"]) != "finished":
            raise ConfigError(f"{folder.path} is {state}; a comparison takes finished runs")
        estimator = str(folder.config().get("values", {}).get(ESTIMATOR, folder.path.name))
        runs.append(read_run(folder.path, _RUNS, label or estimator))
    label_runs(runs, OWN)
    names = list(dict.fromkeys(run.algorithm for run in runs))
    found = Archive(runs, names[0], PRIMARY, {}, [])
    with locked(given.out):
        _report(given.out, _chosen(found, given), console)
    return 0


def _archive(given: argparse.Namespace, console: Console) -> int:
    from openrlhf_gagpo.experiment.archive import read_archive
    from openrlhf_gagpo.experiment.runner import locked

    found = _chosen(read_archive(Path(given.inputs[0])), given)
    with locked(given.out):
        _report(given.out, found, console)
    return 0


def _chosen(found: Archive, given: argparse.Namespace) -> Archive:
    """Apply what the command line says about a comparison of finished runs."""
    names = list(dict.fromkeys(run.algorithm for run in found.runs))
    baseline = given.baseline or found.baseline
    if baseline not in names:
        raise ConfigError(f"--baseline is {baseline!r}; it must be one of {', '.join(names)}")
    return dataclasses.replace(found, baseline=baseline, primary=given.primary or found.primary)


def _report(out: Path, found: Archive, console: Console) -> None:
    from openrlhf_gagpo.experiment.aggregate import aggregate
    from openrlhf_gagpo.experiment.archive import ARCHIVE, write_archive

    try:
        from openrlhf_gagpo.experiment.output import write_results
    except ModuleNotFoundError as error:
        raise ConfigError(f"the report draws with {error.name}, which is not installed; install it") from error

    write_archive(out / ARCHIVE, found)
    page = write_results(out, aggregate(found.runs, found.baseline, found.primary), found.tuning, found.failed)
    console.print(f"report: {page}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    hygiene.apply()
    sys.exit(guarded(main, sys.argv[1:]))
