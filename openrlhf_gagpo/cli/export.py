"""``gagpo export``: recorded episodes in formats that other programs read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.export import formats

__all__ = ["main", "parse"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `gagpo export --help` describes the arguments")


def main(argv: Sequence[str]) -> int:
    """Run the command. Raises ``GagpoError`` for input that cannot be used."""
    given = parse(argv)
    # Imported after the arguments were checked.
    from openrlhf_gagpo.export.sources import read_recording, successes

    recording = replace(read_recording(given.source, given.iteration), tokenizer=given.tokenizer)
    if given.successes_only:
        recording = successes(recording)
    if not recording.episodes:
        raise ConfigError(f"{given.source} holds no episode to export; choose others")
    origin = recording.origin
    out = given.out or Path(given.format.file_name(origin.title, origin.started))
    _check_output(out, given.source)
    written = given.format.write(recording, out)
    sys.stdout.write(f"{given.format.name}: {written} of {origin.title} in {out}\n")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return checked arguments. Raises ``ConfigError`` for unusable ones and ``SystemExit`` after ``--help``."""
    parser = _Parser(
        prog="gagpo export",
        description="Write recorded episodes in a format that other programs read.",
        epilog="\n".join(["formats:", *(f"  {name:<10}{formats.get(name).about}" for name in formats.names())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN",
        help="run folder, results of an evaluation, recorded rollouts, or JSON lines of steps",
    )
    parser.add_argument("--format", required=True, choices=formats.names(), help="what to write")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="file to write, or folder (default: named after the run, here)"
    )
    parser.add_argument(
        "--iteration", metavar="N", help="iteration of a run, or a range such as 2-5 (default: the last recorded one)"
    )
    parser.add_argument("--successes_only", action="store_true", help="leave out episodes that did not succeed")
    parser.add_argument(
        "--tokenizer",
        default="",
        metavar="FOLDER",
        help="model that played, to read its prompts (default: the one that the run names)",
    )
    given = parser.parse_args(list(argv))
    given.format = formats.get(given.format)
    if given.tokenizer and not given.format.reads_prompts:
        raise ConfigError(f"--tokenizer reads prompts, which the format {given.format.name} does not; leave it out")
    return given


def _check_output(out: Path, source: Path) -> None:
    """Refuse to write over what is read, or into it."""
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise ConfigError(f"--out {out} is where the records are; name another place")


if __name__ == "__main__":
    hygiene.apply()
    sys.exit(guarded(main, sys.argv[1:]))
