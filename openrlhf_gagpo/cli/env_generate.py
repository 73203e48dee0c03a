"""Make environment data: one table entry per generator, run in parts so that progress can be shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from agent_envs.alfworld.layout import CATEGORIES, SPLITS
from openrlhf_gagpo.cli.env_access import install_hint, refusals
from openrlhf_gagpo.config.errors import ConfigError

__all__ = ["GENERATORS", "Generator", "generate"]

_PARTS = 100
"""At most so many calls per run of a generator whose work grows with a count."""


@dataclass(frozen=True)
class Generator:
    """How ``gagpo env generate NAME`` makes the data of environment NAME."""

    target: str
    """``module:function``, called as ``function(out, **flags)`` and imported only then."""
    summary: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    """Adds the flags; their destinations are the function's keyword arguments."""
    data_option: str
    """Option of the environment that takes the folder."""
    grows_with: str = ""
    """Flag that counts the pieces. A larger count must keep the pieces of a smaller one: the function is called with
    rising counts. "" for a generator that is called once."""


def _alfworld_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", required=True, choices=SPLITS, help="split the games belong to")
    parser.add_argument("--count", required=True, type=int, metavar="N", help="games in all, complete ones included")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed makes other games (default 0)")
    parser.add_argument("--size", default="small", metavar="SIZE", help="how much a house holds (default small)")
    parser.add_argument(
        "--task_types",
        nargs="+",
        default=["pick_and_place_simple"],
        choices=tuple(CATEGORIES),
        metavar="TYPE",
        help=f"task types, which take turns (default pick_and_place_simple); known: {', '.join(CATEGORIES)}",
    )


GENERATORS: Mapping[str, Generator] = {
    "alfworld": Generator(
        target="agent_envs.alfworld.generator:generate",
        summary="small solvable ALFWorld games",
        add_flags=_alfworld_flags,
        data_option="data_dir",
        grows_with="count",
    ),
}


def generate(name: str, out: Path, values: Mapping[str, Any]) -> None:
    """Run the generator of ``name`` with its flags' ``values``.

    Raises:
        ConfigError: missing packages, a value it refuses, a folder that cannot be written.
    """
    generator = GENERATORS[name]
    hint = install_hint(name)
    if hint:
        raise ConfigError(f"environment {name!r} {hint}")
    module, _, function = generator.target.partition(":")
    make = getattr(import_module(module), function)
    console = Console(highlight=False)
    parts = _parts(values, generator.grows_with)
    with refusals(), _bar(console) as bar:
        job = bar.add_task(f"generating {name}", total=None)
        for part in parts:
            make(out, **part)
            if generator.grows_with:
                bar.update(job, completed=part[generator.grows_with], total=values[generator.grows_with])
    console.print(
        f"{out} is complete; play it with: gagpo env play {name} --env.options {generator.data_option}={out}",
        markup=False,
        soft_wrap=True,
    )


def _parts(values: Mapping[str, Any], grows_with: str) -> list[dict[str, Any]]:
    """Arguments of the calls: rising counts that end at the one asked for."""
    whole = dict(values)
    if not grows_with:
        return [whole]
    total = whole[grows_with]
    stride = max(1, -(-total // _PARTS))
    return [*({**whole, grows_with: count} for count in range(stride, total, stride)), whole]


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
