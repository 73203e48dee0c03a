"""``gagpo env``: list, play, check and generate environments."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from agent_envs import registry
from openrlhf_gagpo import hygiene
from openrlhf_gagpo.cli.env_access import OPTIONS, install_hint, load_plugins
from openrlhf_gagpo.cli.env_generate import GENERATORS
from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.errors import ConfigError

__all__ = ["main", "parse"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` says more")


def main(argv: Sequence[str]) -> int:
    """Run the command. Raises ``ConfigError`` for input that cannot be used, ``RunError`` for a failed environment."""
    given = parse(argv)
    if given.command == "generate":
        from openrlhf_gagpo.cli.env_generate import generate

        values = {key: value for key, value in vars(given).items() if key not in ("command", "name", "out")}
        generate(given.name, given.out, values)
        return 0
    load_plugins(given.plugins)
    if given.command == "list":
        sys.stdout.write("".join(f"{line}\n" for line in _listing()))
    elif given.command == "play":
        from openrlhf_gagpo.cli.env_play import play

        play(given.name, given.options, task=given.task, split=given.split, index=given.index, seed=given.seed)
    else:
        from openrlhf_gagpo.cli.env_check import check

        check(given.name, given.options, given.plugins, splits=given.split)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Checked arguments. Raises ``ConfigError`` for those that make no sense; ``SystemExit`` follows ``--help``."""
    given = _parser().parse_args(list(argv))
    if "options" in given:
        given.options = OPTIONS.coerce([item for use in given.options for item in use], "--env.options")
    if given.command == "play" and given.task is not None and (given.split, given.index) != (None, None):
        raise ConfigError("--task names one task, so --split and --index have no use with it; remove them")
    return given


def _parser() -> argparse.ArgumentParser:
    plugins = argparse.ArgumentParser(add_help=False)
    plugins.add_argument(
        "--plugin",
        "--env.plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file or module that registers environments; may be repeated",
    )
    one = argparse.ArgumentParser(add_help=False, parents=[plugins])
    one.add_argument("name", metavar="NAME", help="environment, as `gagpo env list` names it")
    one.add_argument(
        "--env.options", dest="options", action="append", nargs="+", default=[], metavar="KEY=VALUE", help=OPTIONS.help
    )

    parser = _Parser(prog="gagpo env", description="List, play, check and generate environments.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=parents, allow_abbrev=False
        )

    command("list", "name all environments with their splits and options", plugins)

    play = command("play", "play an episode by hand; input may come from a pipe", one)
    play.add_argument("--task", metavar="ID", help="task to play")
    play.add_argument("--split", metavar="S", help="split to take a task from (default: the environment's first)")
    play.add_argument("--index", type=int, metavar="I", help="which task of the split, from 0 (default 0)")
    play.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the episode (default 0)")

    check = command("check", "see whether an environment works, play one episode in a worker process and time it", one)
    check.add_argument("--split", nargs="+", metavar="S", help="splits that must have tasks (default: all)")

    generate = command("generate", "make the data of an environment that can be played without its original data")
    kinds = generate.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, generator in GENERATORS.items():
        kind = kinds.add_parser(
            name,
            help=generator.summary,
            description=f"Make {generator.summary}. Equal arguments make equal data.",
            allow_abbrev=False,
        )
        kind.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
        generator.add_flags(kind)
    return parser


def _listing() -> list[str]:
    """One line per environment; an environment that cannot be imported or lacks packages says so instead."""
    rows = []
    for name in registry.names():
        try:
            splits = ", ".join(registry.get(name).splits)
            options = " ".join(_option(parameter) for parameter in registry.options(name).values())
        except registry.RegistryError as error:
            rows.append((name, "-", install_hint(name) or str(error)))
            continue
        hint = install_hint(name)
        rows.append((name, splits, f"{options}  [{hint}]" if hint else options))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{name:<{widths[0]}}  {splits:<{widths[1]}}  {rest}".rstrip() for name, splits, rest in rows]


def _option(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return "..."
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"


if __name__ == "__main__":
    hygiene.apply()
    sys.exit(guarded(main, sys.argv[1:]))
