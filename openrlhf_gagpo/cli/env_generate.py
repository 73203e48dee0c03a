"""Make environment data: one table entry per generator."""

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
from openrlhf_gagpo.errors import ConfigError

__all__ = ["GENERATORS", "Generator", "generate"]


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
    progress: tuple[str, str] | None = None
    """Flag that counts the pieces, and the keyword for what the function calls after each; None: it tells nothing."""


def _alfworld_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", required=True, choices=SPLITS, help="split the games belong to")
    parser.add_argument("--count", required=True, type=int, metavar="N", help="games in all, complete ones included")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed makes other games (default 0)")
    parser.add_argument("--size", default="small", metavar="SIZE", help="how much a house holds (default small)")
    parser.add_argument(
        "--task_types",
        nargs="+",
        default=tuple(CATEGORIES),
        choices=tuple(CATEGORIES),
        metavar="TYPE",
        help=f"task types, which take turns (default all): {', '.join(CATEGORIES)}",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that make games (default 1)")


def _webshop_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--products", required=True, type=int, metavar="N", help="products in the catalogue")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another seed makes other products (default 0)"
    )


GENERATORS: Mapping[str, Generator] = {
    "alfworld": Generator(
        target="agent_envs.alfworld.generator:generate",
        summary="solvable ALFWorld games; complete ones are kept",
        add_flags=_alfworld_flags,
        data_option="data_dir",
        progress=("count", "on_game"),
    ),
    "webshop": Generator(
        target="agent_envs.webshop.generator:generate",
        summary="a WebShop catalogue with goals; one that is there is replaced",
        add_flags=_webshop_flags,
        data_option="data_dir",
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
    total, call = generator.progress or ("", "")
    with refusals(), _bar(console) as bar:
        job = bar.add_task(f"generating {name}", total=values.get(total))
        make(out, **values, **({call: lambda _: bar.advance(job)} if call else {}))
    console.print(
        f"{out} is complete; play it with: gagpo env play {name} --env.options {generator.data_option}={out}",
        markup=False,
        soft_wrap=True,
    )


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
