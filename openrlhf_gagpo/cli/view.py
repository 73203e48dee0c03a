"""``gagpo view``: runs, their curves and their episodes in a browser."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.errors import ConfigError

if TYPE_CHECKING:
    from openrlhf_gagpo.viewer.store import Store

__all__ = ["main", "parse"]

_PLACES = {"episode": re.compile(r"(\d+):(\d+)", re.ASCII), "group": re.compile(r"(\d+):(.+)", re.ASCII | re.DOTALL)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `gagpo view --help` describes the arguments")


def main(argv: Sequence[str]) -> int:
    """Run the command. Raises ``GagpoError`` for input that cannot be used."""
    given = parse(argv)
    # Imported after the arguments were checked.
    from openrlhf_gagpo.viewer.store import Store

    store = Store(given.paths)
    if given.out is not None:
        _write(store, given)
        return 0
    try:
        from openrlhf_gagpo.viewer.serve import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the viewer needs {error.name}, which is not installed; install openrlhf-gagpo[view], or write a page "
            "with --out"
        ) from error

    def ready(address: str) -> None:
        sys.stdout.write(f"{address} shows {len(store.sources())} runs and files; Ctrl-C stops it\n")
        sys.stdout.flush()
        if given.browser:
            import webbrowser

            webbrowser.open(address)

    serve(store, given.port, ready)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return checked arguments. Raises ``ConfigError`` for unusable ones and ``SystemExit`` after ``--help``."""
    parser = _Parser(
        prog="gagpo view",
        description="Show runs, evaluations and recorded steps in a browser on this machine.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="run folder, folder of runs, results of an evaluation, recorded rollouts, or JSON lines of steps",
    )
    parser.add_argument(
        "--port", type=int, default=8265, metavar="N", help="port on 127.0.0.1, 0 for a free one (default %(default)s)"
    )
    parser.add_argument("--browser", action="store_true", help="open the page in the default browser")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write one page as a file by itself instead of serving; all runs, or:"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--episode", metavar="I:K", help="for --out: episode K (from 0) of iteration I, or of file I")
    what.add_argument(
        "--group", metavar="I:NAME", help="for --out: the group of that name in iteration I, or in file I"
    )
    parser.add_argument("--state", metavar="S", help="for --group: also the visits of one state, named as in the graph")
    parser.add_argument("--with", dest="other", metavar="ESTIMATOR", help="for --episode: also another estimator")
    given = parser.parse_args(argv)
    if not 0 <= given.port <= 65535:
        raise ConfigError(f"--port is {given.port}; it must be from 0 to 65535")
    for needed, flags in (("out", ("episode", "group")), ("group", ("state",)), ("episode", ("other",))):
        for name in flags:
            if getattr(given, name) is not None and getattr(given, needed) is None:
                flag = "with" if name == "other" else name
                raise ConfigError(f"--{flag} goes with --{needed}; add that, or leave it out")
    for name in ("episode", "group"):
        text = getattr(given, name)
        if text is not None and (_PLACES[name].fullmatch(text) is None):
            raise ConfigError(f"--{name} is {text!r}; give the iteration and the {name}, for example 3:0")
    return given


def _write(store: Store, given: argparse.Namespace) -> None:
    from openrlhf_gagpo.comparison.output import writing
    from openrlhf_gagpo.viewer.pages import Pages

    pages, sources = Pages(store, alone=True), store.sources()
    kind = "episode" if given.episode is not None else "group"
    place = _PLACES[kind].fullmatch(given.episode or given.group or "")
    if place is not None and len(sources) > 1:
        raise ConfigError(f"{given.paths[0]} holds {len(sources)} runs and files; name the one of the {kind}")
    query = {"with": given.other or "", "state": given.state or ""}
    if place is None:
        html = pages.run(sources[0], {}) if len(sources) == 1 else pages.overview({})
    elif kind == "episode":
        html = pages.episode(sources[0], int(place[1]), int(place[2]), query)
    else:
        html = pages.group(sources[0], int(place[1]), place[2], query)
    with writing(given.out, "--out") as file:
        file.write(html)
    sys.stdout.write(f"page: {given.out}\n")


if __name__ == "__main__":
    hygiene.apply()
    sys.exit(guarded(main, sys.argv[1:]))
