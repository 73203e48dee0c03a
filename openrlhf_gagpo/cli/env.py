"""``gagpo env``: list, play, check, generate and serve environments."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from agent_envs import registry
from openrlhf_gagpo import hygiene
from openrlhf_gagpo.cli.env_access import OPTIONS, load_plugins
from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.errors import ConfigError

__all__ = ["main", "parse"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` describes the arguments")


def main(argv: Sequence[str]) -> int:
    """Run the command. Raises ``ConfigError`` for input that cannot be used, ``RunError`` for a failed environment."""
    given = parse(argv)
    if given.command == "generate":
        from openrlhf_gagpo.cli.env_generate import generate, given_values

        generate(given.name, given.out, given_values(given))
        return 0
    if given.command == "serve":
        from openrlhf_gagpo.cli.env_generate import given_values
        from openrlhf_gagpo.cli.env_serve import serve

        serve(given.name, given_values(given))
        return 0
    load_plugins(given.plugins)
    if given.command == "list":
        sys.stdout.write("".join(f"{line}\n" for line in _listing()))
    elif given.command == "play":
        from openrlhf_gagpo.cli.env_play import play

        play(given.name, given.options, task=given.task, split=given.split, index=given.index, seed=given.seed)
    elif given.command == "openenv":
        from openrlhf_gagpo.cli.env_openenv import serve_openenv

        serve_openenv(given.name, given.options, given.host, given.port, given.sessions)
    else:
        from openrlhf_gagpo.cli.env_check import check

        check(given.name, given.options, given.plugins, splits=given.split, sample=given.tasks)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return checked arguments. Raises ``ConfigError`` for unusable ones and ``SystemExit`` after ``--help``.

    Plugins are loaded here, because environments declare the flags of ``generate`` and ``serve``.
    """
    arguments = list(argv)
    declared = arguments[0] if arguments[:1] in (["generate"], ["serve"]) else ""
    if declared:
        known, arguments = _plugin_parser().parse_known_args(arguments)
        load_plugins(known.plugins)
    given = _parser(declared).parse_args(arguments)
    if "options" in given:
        given.options = OPTIONS.coerce([item for use in given.options for item in use], "--env.options")
    if given.command == "play" and given.task is not None and (given.split, given.index) != (None, None):
        raise ConfigError("--task names one task, so --split and --index have no effect with it; remove them")
    if given.command == "check" and given.tasks < 1:
        raise ConfigError(f"--tasks is {given.tasks}; the contract is checked on at least 1 task of each split")
    if given.command == "openenv" and (not 0 <= given.port <= 65535 or given.sessions < 1):
        raise ConfigError("--port must be from 0 to 65535 and --sessions at least 1; correct the flag")
    return given


def _plugin_parser() -> _Parser:
    parser = _Parser(add_help=False, allow_abbrev=False, prog="gagpo env")
    parser.add_argument(
        "--plugin",
        "--env.plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file or module that registers environments; may be repeated",
    )
    return parser


def _parser(declared: str) -> argparse.ArgumentParser:
    """Build the parser of all commands; only the ``declared`` one gets what environments declare, as that is slow."""
    plugins = _plugin_parser()
    one = _Parser(add_help=False, parents=[plugins])
    one.add_argument("name", metavar="NAME", help="environment, as `gagpo env list` names it")
    one.add_argument(
        "--env.options", dest="options", action="append", nargs="+", default=[], metavar="KEY=VALUE", help=OPTIONS.help
    )

    parser = _Parser(
        prog="gagpo env", description="List, play, check, generate and serve environments.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, *parents: _Parser) -> _Parser:
        return commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=parents, allow_abbrev=False
        )

    command("list", "name all environments with their splits and options", plugins)

    play = command("play", "play an episode by hand; input may come from a pipe", one)
    play.add_argument("--task", metavar="ID", help="task to play")
    play.add_argument("--split", metavar="S", help="split to take a task from (default: the environment's first)")
    play.add_argument("--index", type=int, metavar="I", help="which task of the split, from 0 (default 0)")
    play.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the episode (default 0)")

    check = command(
        "check",
        "check whether an environment works: play and time an episode in a worker, test the contract",
        one,
    )
    check.add_argument("--split", nargs="+", metavar="S", help="splits that must have tasks (default: all)")
    check.add_argument(
        "--tasks", type=int, default=2, metavar="N", help="tasks of each split to check the contract on (default 2)"
    )

    openenv = command("openenv", "serve an environment to clients of OpenEnv", one)
    openenv.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default %(default)s)")
    openenv.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port, 0 for a free one (default %(default)s)"
    )
    openenv.add_argument(
        "--sessions", type=int, default=64, metavar="N", help="most episodes at a time (default %(default)s)"
    )

    generate = command("generate", "make data for an environment that can be played without its original data", plugins)
    if declared == "generate":
        _add_generators(generate, plugins)
    serve = command("serve", "offer an environment's data to other processes and machines", plugins)
    if declared == "serve":
        _add_services(serve, plugins)
    return parser


def _add_generators(generate: _Parser, plugins: _Parser) -> None:
    from openrlhf_gagpo.cli.env_generate import add_flags, generators

    kinds = generate.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, generator in generators().items():
        kind = kinds.add_parser(
            name,
            help=generator.summary,
            description=f"Make {generator.summary}. Equal arguments give equal data.",
            parents=[plugins],
            allow_abbrev=False,
        )
        kind.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
        add_flags(kind, generator.options)


def _add_services(serve: _Parser, plugins: _Parser) -> None:
    from openrlhf_gagpo.cli.env_generate import add_flags
    from openrlhf_gagpo.cli.env_serve import services

    kinds = serve.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, service in services().items():
        kind = kinds.add_parser(
            name,
            help=service.summary,
            description=f"Answer {service.summary}.",
            parents=[plugins],
            allow_abbrev=False,
        )
        add_flags(kind, service.options)


def _listing() -> list[str]:
    """Return one line per environment; a line says if the environment cannot be imported or lacks packages."""
    rows = []
    for name in registry.names():
        try:
            cls = registry.get(name)
        except registry.RegistryError as error:
            rows.append((name, "-", str(error)))
            continue
        options = " ".join(_option(parameter) for parameter in registry.options(name).values())
        notes = [f"[data: gagpo env generate {name}]"] if cls.generator is not None else []
        notes += [f"[serve: gagpo env serve {name}]"] if cls.service is not None else []
        notes += [f"[{hint}]"] if (hint := cls.needs.hint()) else []
        rows.append((name, ", ".join(cls.splits), "  ".join([options, *notes])))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{name:<{widths[0]}}  {splits:<{widths[1]}}  {rest}".rstrip() for name, splits, rest in rows]


def _option(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return "..."
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"


if __name__ == "__main__":
    hygiene.apply()
    sys.exit(guarded(main, sys.argv[1:]))
