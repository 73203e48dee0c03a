"""``python -m openrlhf_gagpo.credit.conformance``: check an implementation of an estimator against recorded cases."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections import Counter
from collections.abc import Sequence

from openrlhf_gagpo.credit import conformance
from openrlhf_gagpo.credit.conformance.cases import ATOL, RTOL, Case, Function, cases, judge
from openrlhf_gagpo.errors import EstimatorError

__all__ = ["main"]

_ADVANTAGE = "advantage"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 1 if a case fails, 2 for input that cannot be used."""
    given = _parser().parse_args(argv)
    known = [case for case in cases() if case.quantity == _ADVANTAGE]
    if given.list:
        sys.stdout.write(_listing(known))
        return 0
    try:
        function, name = _function(given.function)
        chosen = _choose(known, given.estimator, name)
    except EstimatorError as error:
        sys.stderr.write(f"conformance: error: {error}\n")
        return error.exit_status
    failed = sum(not _report(case, function, given.rtol, given.atol) for case in chosen)
    sys.stdout.write(f"{len(chosen) - failed} of {len(chosen)} cases passed\n")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {conformance.__name__}",
        description="Check an implementation of an advantage estimator against recorded cases. FUNCTION takes a dict "
        "of columns (lists) and a dict of options, and returns one advantage per step in the order of the columns.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("function", nargs="?", metavar="MODULE:FUNCTION", help="what to check")
    what.add_argument("--list", action="store_true", help="name the estimators and their cases")
    parser.add_argument(
        "--estimator",
        metavar="NAME",
        help="estimator that it implements (default: the one that FUNCTION is named after)",
    )
    parser.add_argument(
        "--rtol", type=float, default=RTOL, metavar="X", help="relative tolerance (default %(default)s)"
    )
    parser.add_argument(
        "--atol", type=float, default=ATOL, metavar="X", help="absolute tolerance (default %(default)s)"
    )
    return parser


def _listing(known: Sequence[Case]) -> str:
    counts: dict[str, Counter[str]] = {}
    for case in known:
        counts.setdefault(case.estimator, Counter())[case.name.rpartition("-")[0]] += 1
    return "".join(
        f"{estimator}: {', '.join(f'{key} ({count})' for key, count in keys.items())}\n"
        for estimator, keys in counts.items()
    )


def _function(source: str) -> tuple[Function, str]:
    """Import ``MODULE:FUNCTION`` and return it with the function's name."""
    module, colon, name = source.partition(":")
    if not (module and colon and name):
        raise EstimatorError(f"{source!r} is not MODULE:FUNCTION; write for example my_package.credit:grpo_advantage")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # the import runs somebody else's code
        raise EstimatorError(f"{module} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise EstimatorError(f"{module} has no function {name}; check the name after the colon")
    return function, name


def _choose(known: Sequence[Case], wanted: str | None, name: str) -> list[Case]:
    estimators = list(dict.fromkeys(case.estimator for case in known))
    chosen = [case for case in known if case.estimator == (wanted or name)]
    if not chosen:
        said = f"there are no cases of {wanted!r}" if wanted else f"{name} is not the name of an estimator with cases"
        raise EstimatorError(f"{said}; set --estimator to one of {', '.join(estimators)}")
    return chosen


def _report(case: Case, function: Function, rtol: float, atol: float) -> bool:
    """Print the line of one case and return whether it passed."""
    verdict = judge(case, function, rtol, atol)
    found = verdict.problem or f"largest deviation {verdict.deviation:.1e}"
    sys.stdout.write(f"{'pass' if verdict.passed else 'FAIL'}  {case.name:<28}{len(case.expected):>4} steps  {found}\n")
    return verdict.passed


if __name__ == "__main__":
    sys.exit(main())
