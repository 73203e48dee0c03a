"""``gagpo doctor``: check installation, machine and environments before a run does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import indent
from typing import NoReturn

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.errors import ConfigError

__all__ = ["main", "parser"]

_DESCRIPTION = (
    "Check versions, GPUs, memory, shared memory, disks, Ray, vLLM and environments, and say what to do about each "
    "problem. The exit status is 1 if something stops a run, else 0, also with warnings."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `gagpo doctor --help` describes the arguments")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    arguments = _Parser(prog="gagpo doctor", description=_DESCRIPTION, allow_abbrev=False)
    arguments.add_argument(
        "--backend",
        choices=tuple(BACKENDS),
        help="backend that has to run (default: whichever is completely installed)",
    )
    arguments.add_argument("--env.name", dest="env", metavar="NAME", help="environment that has to work; it is played")
    arguments.add_argument(
        "--env.options", dest="options", action="append", nargs="+", default=[], metavar="KEY=VALUE", help="its options"
    )
    arguments.add_argument(
        "--env.plugin", dest="plugins", action="append", default=[], metavar="FILE", help="file or module that has it"
    )
    arguments.add_argument(
        "--run_dir", type=Path, default=Path("runs"), help="where runs will be written (default: runs)"
    )
    arguments.add_argument("--quick", action="store_true", help="import no backend and play no environment")
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Run the command and return 1 if there is a problem that stops a run, else 0."""
    given = parser().parse_args(argv)
    if given.env is None and (given.options or given.plugins):
        raise ConfigError("--env.options and --env.plugin belong to an environment; name it with --env.name")
    from openrlhf_gagpo.doctor import Finding, Level, Request, examine, worst

    options = [option for use in given.options for option in use]
    request = Request(given.backend, given.env, options, given.plugins, given.run_dir, given.quick)

    def shown(found: Iterable[Finding]) -> Iterable[Finding]:
        for finding in found:
            if not given.json:
                sys.stdout.write(f"{finding.level!s:<8} {finding.subject:<21} {finding.text}\n")
                if finding.advice:
                    sys.stdout.write(indent(f"{finding.advice}\n", " " * 31 + "-> "))
                sys.stdout.flush()
            yield finding

    findings = list(shown(examine(request)))
    verdict = worst(findings)
    if given.json:
        content = {"verdict": str(verdict), "checks": [finding.to_dict() for finding in findings]}
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        counts = [sum(finding.level is level for finding in findings) for level in (Level.PROBLEM, Level.WARNING)]
        sys.stdout.write(f"problems: {counts[0]}, warnings: {counts[1]}\n")
    return 1 if verdict is Level.PROBLEM else 0


if __name__ == "__main__":
    hygiene.apply()
    sys.exit(guarded(main, sys.argv[1:]))
