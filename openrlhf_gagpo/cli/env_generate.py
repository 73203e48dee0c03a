"""Generation of environment data, with the generator and the flags that each environment declares."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent_envs import registry
from agent_envs.declarations import Generator, GeneratorOption, Value
from openrlhf_gagpo.cli.env_access import refusals
from openrlhf_gagpo.errors import ConfigError

__all__ = ["add_flags", "generate", "generators", "given_values"]

_PREFIX = "declared option "
"""Keeps the names of options apart from everything else in the parsed arguments."""


def generators() -> dict[str, Generator]:
    """Return the generators by environment name, for environments that have one and can be imported."""
    found = {}
    for name in registry.names():
        try:
            generator = registry.get(name).generator
        except registry.RegistryError:
            continue
        if generator is not None:
            found[name] = generator
    return found


def add_flags(parser: argparse.ArgumentParser, options: Sequence[GeneratorOption]) -> None:
    """Add a flag for each option of a generator or service."""
    for option in options:
        required = option.default is None
        # Escaped, because argparse formats what follows a percent sign.
        text = option.help.replace("%", "%%")
        parser.add_argument(
            f"--{option.name}",
            dest=_PREFIX + option.name,
            type=_converter(option),
            choices=option.choices or None,
            nargs="+" if option.several else None,
            default=option.default,
            required=required,
            metavar={int: "N", float: "X"}.get(option.kind, option.name.upper()),
            help=text if required else f"{text} (default {_shown(option)})",
        )


def given_values(arguments: argparse.Namespace) -> dict[str, Value | tuple[Value, ...]]:
    """Return the values of the flags that ``add_flags`` added, by option."""
    values = {name.removeprefix(_PREFIX): value for name, value in vars(arguments).items() if name.startswith(_PREFIX)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def generate(name: str, out: Path, values: Mapping[str, Value | tuple[Value, ...]]) -> None:
    """Run the generator of environment ``name`` with the ``values`` of its options.

    Raises:
        ConfigError: packages are missing, a value is refused, or the folder cannot be written.
    """
    with refusals():
        cls = registry.get(name)
    if cls.generator is None:
        raise ConfigError(f"environment {name!r} has no generator; play it with the data it has")
    if hint := cls.needs.hint():
        raise ConfigError(f"environment {name!r} {hint}")
    console = Console(highlight=False)
    with refusals(), _bar(console) as bar:
        job = bar.add_task(f"generating {name}", total=None)
        cls.generator.run(out, lambda done, total: bar.update(job, completed=done, total=total), **values)
    console.print(
        f"{out} is complete; play it with: gagpo env play {name} --env.options {cls.generator.data_option}={out}",
        markup=False,
        soft_wrap=True,
    )


def _converter(option: GeneratorOption) -> Callable[[str], Value]:
    def convert(text: str) -> Value:
        value = option.kind(text)
        # Choices are left to argparse, which lists them in its error.
        problem = "" if option.choices else option.problem(value)
        if problem:
            raise argparse.ArgumentTypeError(f"{text} is not allowed, it {problem}")
        return value

    # argparse uses this name in the error about a value that cannot be read.
    convert.__name__ = option.kind.__name__
    return convert


def _shown(option: GeneratorOption) -> str:
    if option.several and option.default == option.choices:
        return f"all: {', '.join(map(str, option.choices))}"
    return " ".join(map(str, option.default)) if isinstance(option.default, tuple) else str(option.default)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
