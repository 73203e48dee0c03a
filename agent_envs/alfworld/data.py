"""ALFWorld's games: where they are, how they compare with the official ones, and how to generate some."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from agent_envs.alfworld.layout import (
    CATEGORIES,
    GAME_FILE,
    OFFICIAL_COUNTS,
    SPLITS,
    count_halves,
    games_root,
    is_official,
    task_type_of,
)
from agent_envs.declarations import Generator, GeneratorOption, OnProgress

__all__ = ["GENERATOR", "compare_with_official", "find_games"]


def find_games(data_dir: str | os.PathLike[str] | None) -> Iterator[str]:
    """Yield which folder is used and what selected it. Raises ``EnvError`` if it does not exist."""
    if data_dir:
        origin = "option data_dir"
    elif os.environ.get("ALFWORLD_DATA"):
        origin = "variable ALFWORLD_DATA"
    else:
        origin = "default; option data_dir or variable ALFWORLD_DATA choose another"
    yield f"{games_root(data_dir)} ({origin})"


def compare_with_official(root: Path, tasks: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the numbers of games found and of official games, by split and category, and where to get missing ones."""
    yield f"{'found/official':<15}" + "".join(f"{kind:>10}" for kind in ("all", *CATEGORIES.values()))
    differs = False
    fewer: list[str] = []
    for split, ids in tasks.items():
        found, official = Counter(CATEGORIES[task_type_of(task)] for task in ids), OFFICIAL_COUNTS[split]
        cells = [f"{len(ids)}/{sum(official.values())}"]
        cells += [f"{found[kind]}/{official[kind]}" for kind in CATEGORIES.values()]
        yield f"{split:<15}" + "".join(f"{cell:>10}" for cell in cells)
        differs = differs or found != official
        if any(found[kind] < official[kind] for kind in CATEGORIES.values()):
            fewer.append(split)
    for split in fewer:
        if halves := count_halves(root, split):
            yield f"{split}: {halves} games lack {GAME_FILE}; `alfworld-download` fetches the rest."
    if fewer and any(is_official(task) for ids in tasks.values() for task in ids):
        yield "These are official games, but not all of them; `alfworld-download` fetches the rest."
    elif differs:
        yield "These are not the official games; `alfworld-download` fetches those, and"
        yield "`gagpo env generate alfworld --out DIR --split train --count 50` makes games without a download."


def _generate(out: Path, on_progress: OnProgress, **values: Any) -> None:
    # Imported here, because it imports the engine.
    from agent_envs.alfworld.generator import generate

    done = count(1)
    generate(out, **values, on_game=lambda _: on_progress(next(done), values["count"]))


GENERATOR = Generator(
    summary="solvable ALFWorld games; complete ones are kept",
    run=_generate,
    data_option="data_dir",
    options=(
        GeneratorOption("split", str, "split the games belong to", choices=SPLITS),
        GeneratorOption("count", int, "games in all, complete ones included", low=0),
        GeneratorOption("seed", int, "another seed makes other games", default=0),
        GeneratorOption("size", str, "how much a house holds: small, medium or real", default="small"),
        GeneratorOption(
            "task_types",
            str,
            "task types, which take turns",
            default=tuple(CATEGORIES),
            choices=tuple(CATEGORIES),
            several=True,
        ),
        GeneratorOption("workers", int, "processes that make games", default=1, low=1),
    ),
)
