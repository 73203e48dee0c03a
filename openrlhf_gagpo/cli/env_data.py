"""What ``gagpo env check`` knows of the data that built-in environments play with."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DATA", "Data"]

_Tasks = Mapping[str, Sequence[str]]
_Options = Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """How to tell of one environment's data; the lines that each function returns are for people."""

    splits: Callable[[_Options], Sequence[str]]
    """Splits that an instance with these options has."""
    where: Callable[[_Options], Iterator[str]]
    """Where the data was looked for and what is there. Raises ``EnvError`` in the end where nothing can be played."""
    table: Callable[[_Tasks, _Options], list[str]]
    """What the tasks say of the data, beside the official numbers."""


def _alfworld_splits(options: _Options) -> Sequence[str]:
    from agent_envs.alfworld.layout import SPLITS

    return SPLITS


def _alfworld_folder(options: _Options) -> Iterator[str]:
    from agent_envs.alfworld.layout import games_root

    if options.get("data_dir"):
        origin = "option data_dir"
    elif os.environ.get("ALFWORLD_DATA"):
        origin = "variable ALFWORLD_DATA"
    else:
        origin = "default; option data_dir or variable ALFWORLD_DATA choose another"
    yield f"{games_root(options.get('data_dir'))} ({origin})"


def _alfworld_table(tasks: _Tasks, options: _Options) -> list[str]:
    """Games found / games of the official data, by split and category."""
    from agent_envs.alfworld.layout import (
        CATEGORIES,
        GAME_FILE,
        OFFICIAL_COUNTS,
        count_halves,
        games_root,
        is_official,
        task_type_of,
    )

    root = games_root(options.get("data_dir"))
    lines = [f"{'found/official':<15}" + "".join(f"{kind:>10}" for kind in ("all", *CATEGORIES.values()))]
    differs = fewer = False
    for split, ids in tasks.items():
        found, official = Counter(CATEGORIES[task_type_of(task)] for task in ids), OFFICIAL_COUNTS[split]
        cells = [f"{len(ids)}/{sum(official.values())}"]
        cells += [f"{found[kind]}/{official[kind]}" for kind in CATEGORIES.values()]
        lines.append(f"{split:<15}" + "".join(f"{cell:>10}" for cell in cells))
        differs = differs or found != official
        if any(found[kind] < official[kind] for kind in CATEGORIES.values()):
            fewer = True
            if halves := count_halves(root, split):
                lines.append(f"{split}: {halves} games lack {GAME_FILE}; `alfworld-download` fetches the rest.")
    if fewer and any(is_official(task) for ids in tasks.values() for task in ids):
        lines.append("These are official games, but not all of them; `alfworld-download` fetches the rest.")
    elif differs:
        lines += [
            "These are not the official games; `alfworld-download` fetches those, and",
            "`gagpo env generate alfworld --out DIR --split train --count 50` makes games without a download.",
        ]
    return lines


_WEBSHOP_FILES: Mapping[str, str] = {
    "items_shuffle_1000.json": "the first 1,000 products",
    "items_ins_v2_1000.json": "their attributes and synthetic instructions",
    "items_shuffle.json": "all products",
    "items_ins_v2.json": "their attributes and synthetic instructions",
    "items_human_ins.json": "people's instructions, for human_goals",
}
_WEBSHOP_CLEAN = ("train", "valid", "test")


def _webshop_splits(options: _Options) -> Sequence[str]:
    from agent_envs.webshop import WebShopEnv

    return _WEBSHOP_CLEAN if options.get("mode") == "clean" else WebShopEnv.splits


def _webshop_folder(options: _Options) -> Iterator[str]:
    """Each official file with its size, where those that lack come from, and which are played."""
    from agent_envs.webshop.sources import DATA_VARIABLE, find_sources

    given = options.get("data_dir") or os.environ.get(DATA_VARIABLE)
    if given:
        root = Path(given).expanduser()
        yield f"{root} ({'option data_dir' if options.get('data_dir') else f'variable {DATA_VARIABLE}'})"
        paths = [root / name for name in _WEBSHOP_FILES]
        for path in paths:
            size = f"{path.stat().st_size / 2**20:,.1f} MiB" if path.is_file() else "missing"
            yield f"{path.name:<25}{size:>13}  {_WEBSHOP_FILES[path.name]}"
        if not all(path.is_file() for path in paths):
            yield "Official files come from setup.sh (-d small or -d all) of the repository princeton-nlp/WebShop;"
            yield "`gagpo env generate webshop --out DIR --products 1000` makes a catalogue without a download."
    sources = find_sources(given, options.get("files", "auto"))
    yield f"played: {', '.join(path.name for path in sources.paths)}"


def _webshop_table(tasks: _Tasks, options: _Options) -> list[str]:
    from agent_envs.webshop.catalogue import load_catalogue

    taken = {name: options[name] for name in ("data_dir", "files", "num_products", "cache_dir") if name in options}
    kind = "human" if options.get("human_goals") else "synthetic"
    return [
        f"{len(load_catalogue(**taken))} products; {kind} goals: "
        + ", ".join(f"{split} {len(ids)}" for split, ids in tasks.items()),
        "official: 6910 synthetic goals with the first 1,000 products; 12087 human instructions in all",
    ]


DATA: Mapping[str, Data] = {
    "alfworld": Data(_alfworld_splits, _alfworld_folder, _alfworld_table),
    "webshop": Data(_webshop_splits, _webshop_folder, _webshop_table),
}
