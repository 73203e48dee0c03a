"""``gagpo credit``: the credit of several estimators on recorded steps, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.config.families import Family, families
from openrlhf_gagpo.config.flag import negation
from openrlhf_gagpo.credit import EstimatorOptions, get
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.plugins import load_algo_plugins

if TYPE_CHECKING:
    from openrlhf_gagpo.comparison.compute import Credit
    from openrlhf_gagpo.comparison.page import Table
    from openrlhf_gagpo.comparison.steps import Own, Source
    from openrlhf_gagpo.truth.referee import Verdict

__all__ = ["main", "parse"]

_GAMMA = "gamma"
_STATES = 64
"""Recorded states at which the truth is estimated."""
_OPTION = "option "
"""Prefix of the options of estimators among the parsed arguments."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `gagpo credit --help` describes the arguments")


def main(argv: Sequence[str]) -> int:
    """Run the command. Raises ``GagpoError`` for input that cannot be used."""
    given = parse(argv)
    # SciPy and the readers are imported after the arguments were checked.
    from rich.console import Console

    from openrlhf_gagpo.comparison.agreement import agreements
    from openrlhf_gagpo.comparison.compute import compute
    from openrlhf_gagpo.comparison.output import write_credit
    from openrlhf_gagpo.comparison.source import read_source
    from openrlhf_gagpo.comparison.tables import agreement_table, diagnostics_table, step_table

    source = read_source(given.source, given.iteration)
    chosen = _chosen(given.estimators, source.own)
    set_options = _set_options(given)
    _check_owners(set_options, chosen, {_GAMMA} if given.truth else set())
    credits = [compute(source, name, _options(name, set_options, source.own)) for name in chosen]
    found, note = agreements(credits), _note(source, credits)
    verdict = _verdict(given, source, credits, set_options) if given.truth else None

    console = Console(highlight=False)
    console.print(f"{source.title}: {len(source)} steps", markup=False, soft_wrap=True)
    for credit in credits:
        console.print(f"{credit.estimator}: {_told(credit.options)}", markup=False, soft_wrap=True)
    if given.rows:
        console.print(step_table(source, credits, given.rows))
    if found:
        console.print(agreement_table(found))
    console.print(diagnostics_table(credits))
    if verdict is not None:
        from openrlhf_gagpo.truth.tables import truth_tables

        for table in truth_tables(verdict.scores):
            console.print(table)
        console.print(verdict.note, markup=False, soft_wrap=True)
    if note:
        console.print(note, markup=False, soft_wrap=True)
    if given.output is not None:
        write_credit(given.output, source, credits, [] if verdict is None else verdict.lines(source))
        console.print(f"credit: {given.output}", markup=False, soft_wrap=True)
    if given.html is not None:
        try:
            from openrlhf_gagpo.comparison.page import write_page
        except ModuleNotFoundError as error:
            raise ConfigError(f"--html draws with {error.name}, which is not installed; install it") from error

        write_page(given.html, source, credits, found, given.rows, note, [] if verdict is None else _tables(verdict))
        console.print(f"page: {given.html}", markup=False, soft_wrap=True)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return checked arguments. Raises ``ConfigError`` for unusable ones and ``SystemExit`` after ``--help``.

    Plugins are loaded here, because their estimators bring options. What is given for an estimator's option is stored
    under the prefix ``_OPTION``.
    """
    plugins, _ = _plugin_parser().parse_known_args(list(argv))
    load_algo_plugins(plugins.plugins)
    given = _parser(families()[0]).parse_args(list(argv))
    if given.rows < 0:
        raise ConfigError(f"--rows is {given.rows}; it must be 0 or more")
    _check_outputs(given)
    _check_truth(given)
    return given


def _check_truth(given: argparse.Namespace) -> None:
    """Refuse arguments about the truth that miss what they are about, or are out of range."""
    if given.model is not None and not given.truth:
        raise ConfigError("--model names the weights that --truth reads; add --truth, or leave it out")
    if given.continuations is not None and not given.truth:
        raise ConfigError("--continuations estimates what --truth computes; add --truth, or leave it out")
    for name in ("states", "seed"):
        if getattr(given, name) is not None and given.continuations is None:
            raise ConfigError(f"--{name} chooses where --continuations begin; add --continuations, or leave it out")
    if given.continuations is not None and given.continuations < 2:
        raise ConfigError(f"--continuations is {given.continuations}; a standard error needs at least 2")
    if given.states is not None and given.states < 1:
        raise ConfigError(f"--states is {given.states}; it must be 1 or more")


def _check_outputs(given: argparse.Namespace) -> None:
    """Refuse to write over what is read, or over the other output."""
    source = given.source.resolve()
    paths = {f"--{name}": path.resolve() for name in ("output", "html") if (path := getattr(given, name)) is not None}
    for flag, path in paths.items():
        if path == source:
            raise ConfigError(f"{flag} {path} is the file that is read; name another file")
        if source in path.parents:
            raise ConfigError(f"{flag} {path} lies in the run folder that is read; name a file elsewhere")
    if len(set(paths.values())) < len(paths):
        raise ConfigError(f"--output and --html are both {given.html}; name two files")


def _plugin_parser() -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--plugin",
        "--algo.plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file or module that registers estimators; may be repeated",
    )
    return parser


def _parser(family: Family) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gagpo credit",
        usage="gagpo credit RUN_OR_FILE --estimator NAME [--estimator NAME ...] [--OPTION VALUE ...]",
        description="Compute advantages of any estimators on recorded steps and compare them.",
        parents=[_plugin_parser()],
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN_OR_FILE",
        help="run folder, file of recorded rollouts, or JSON lines with one step each",
    )
    parser.add_argument(
        "--estimator",
        dest="estimators",
        action="append",
        default=[],
        metavar="NAME",
        help="estimator to compute; may be repeated (default: the one of the run)",
    )
    parser.add_argument(
        "--iteration", metavar="N", help="iteration of a run, or a range such as 2-5 (default: the last recorded one)"
    )
    parser.add_argument("--rows", type=int, default=20, metavar="N", help="steps in the table (default %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the credit of every step as JSON lines")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write tables and plots as one page")
    parser.add_argument(
        "--truth",
        action="store_true",
        help="compare with the true values of the policy that played; exact, in an environment that offers its rules",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="weights that played the iteration, for --truth (default: the run's checkpoint, or its start model)",
    )
    parser.add_argument(
        "--continuations",
        type=int,
        metavar="N",
        help="estimate the truth from N episodes played on from each of some recorded states, in any environment that "
        "takes snapshots",
    )
    parser.add_argument(
        "--states", type=int, metavar="M", help=f"recorded states at which to do so (default {_STATES})"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="seed of states and continuations (default 0)")
    group = parser.add_argument_group(
        "options of the estimators", "Each applies to all chosen estimators that have it."
    )
    for flag in family.options.values():
        name = flag.name.removeprefix(family.prefix)
        if f"--{name}" in parser._option_string_actions:
            owner = family.owners[flag.name][0]
            raise ConfigError(f"option {name} of {owner} has the name of an argument of gagpo credit; rename it")
        text = f"{flag.help} [{', '.join(family.owners[flag.name])}]".replace("%", "%%")
        stored: dict[str, Any] = {"dest": _OPTION + flag.name, "default": argparse.SUPPRESS}
        if flag.kind is bool:
            group.add_argument(f"--{name}", action="store_const", const=True, help=text, **stored)
            group.add_argument(
                f"--{negation(name)}", action="store_const", const=False, help=argparse.SUPPRESS, **stored
            )
        else:
            metavar = "{" + ",".join(map(str, flag.choices)) + "}" if flag.choices else "X"
            group.add_argument(f"--{name}", nargs=flag.nargs, metavar=metavar, help=text, **stored)
    return parser


def _chosen(named: Sequence[str], own: Own | None) -> list[str]:
    """Return the estimators to compute, each once."""
    if not named and own is None:
        raise ConfigError(
            "no estimator is named, and a file does not say which one it was played with; set --estimator"
        )
    return list(dict.fromkeys(get(name).name for name in named or [own.estimator if own else ""]))


def _set_options(given: argparse.Namespace) -> dict[str, Any]:
    """Return the checked values of the options that were set, by field."""
    family = families()[0]
    return {
        flag.name.removeprefix(family.prefix): flag.coerce(raw, f"--{flag.name.removeprefix(family.prefix)}")
        for flag in family.options.values()
        if (raw := getattr(given, _OPTION + flag.name, None)) is not None
    }


def _check_owners(set_options: Mapping[str, Any], chosen: Sequence[str], others: AbstractSet[str]) -> None:
    """Refuse options that neither an estimator has nor one of ``others`` is."""
    family = families()[0]
    for name in set_options.keys() - others:
        owners = family.owners[family.prefix + name]
        if not set(owners) & set(chosen):
            raise ConfigError(
                f"--{name} is an option of {', '.join(owners)}, and none of them is compared; leave it out, or add one"
            )


def _options(estimator: str, set_options: Mapping[str, Any], own: Own | None) -> EstimatorOptions:
    """Return the options of an estimator: those set here, then those of the run if it is the run's, then defaults."""
    cls = get(estimator).options_cls
    base = own.options if own is not None and own.estimator == estimator else cls()
    names = {item.name for item in fields(cls)}
    changes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in set_options.items() if name in names
    }
    try:
        return replace(base, **changes)
    except ValueError as error:
        raise ConfigError(f"estimator {estimator}: {error}") from error


def _told(options: EstimatorOptions) -> str:
    """Say which options are not the estimator's defaults."""
    default = type(options)()
    changed = [
        f"{item.name} {getattr(options, item.name)}"
        for item in fields(options)
        if getattr(options, item.name) != getattr(default, item.name)
    ]
    return ", ".join(changed) or "default options"


def _note(source: Source, credits: Sequence[Credit]) -> str:
    """Say whether the run's own estimator, with its own options, gives what the run recorded."""
    from openrlhf_gagpo.comparison.compute import equal_to_recorded

    own = source.own
    same = [c for c in credits if own is not None and (c.estimator, c.options) == (own.estimator, own.options)]
    if not same:
        return ""
    equal, recorded = equal_to_recorded(source, same[0])
    return f"{equal} of {recorded} advantages that the run recorded are exactly those of {same[0].estimator}"


def _verdict(
    given: argparse.Namespace, source: Source, credits: Sequence[Credit], set_options: Mapping[str, Any]
) -> Verdict:
    """Compute the truth for the chosen discount factor and for 1, which makes values chances of success."""
    # Imports torch.
    from openrlhf_gagpo.truth.continuations import Budget
    from openrlhf_gagpo.truth.referee import judge

    if source.own is None:
        raise ConfigError("--truth asks the model that played, which only a run folder knows; give a run folder")
    gamma = float(set_options.get(_GAMMA, getattr(source.own.options, _GAMMA, 1.0)))
    gammas = list(dict.fromkeys([gamma, 1.0]))
    budget = None
    if given.continuations is not None:
        budget = Budget(given.states or _STATES, given.continuations, given.seed or 0)
    return judge(given.source, source, credits, gammas=gammas, model=given.model, budget=budget)


def _tables(verdict: Verdict) -> list[Table]:
    from openrlhf_gagpo.truth.tables import error_rows, score_rows

    return [
        ("Truth", verdict.note, *score_rows(verdict.scores)),
        (
            "Differences to the truth",
            "By the number of steps that a group took in the same state.",
            *error_rows(verdict.scores),
        ),
    ]


if __name__ == "__main__":
    hygiene.apply()
    sys.exit(guarded(main, sys.argv[1:]))
